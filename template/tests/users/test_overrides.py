"""Override a dependency with a function that returns a mock, not with the mock itself."""

from unittest.mock import AsyncMock, patch

import pytest
from fastapi import FastAPI

from app.users import dependencies
from app.users.breaches import Breaches
from app.users.dependencies import get_breaches
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD

ADA = {"email": "ada@example.com", "password": PASSWORD}


@pytest.fixture
def breaches(app: FastAPI) -> AsyncMock:
    """A mock that sign-ups ask whether a password is known."""
    breaches = AsyncMock(spec=Breaches)
    breaches.contain.return_value = False
    # A function that returns the mock, not the mock: FastAPI would take `args` and `kwargs`
    # in a mock's signature for query parameters.
    app.dependency_overrides[get_breaches] = lambda: breaches
    return breaches


async def test_endpoint_uses_what_replaces_the_dependency(
    client: AsyncClient, breaches: AsyncMock
) -> None:
    breaches.contain.return_value = True
    response = await client.post("/users", json=ADA)
    assert response.json()["type"] == "urn:problem-type:password-breached"
    breaches.contain.assert_awaited_once_with(PASSWORD)


@pytest.mark.parametrize("run", [1, 2])
async def test_override_is_gone_with_its_test(app: FastAPI, run: int) -> None:
    assert app.dependency_overrides == {}
    app.dependency_overrides[get_breaches] = lambda: AsyncMock(spec=Breaches)


async def test_mock_in_place_of_a_dependency_is_taken_for_parameters(
    app: FastAPI, client: AsyncClient
) -> None:
    app.dependency_overrides[get_breaches] = AsyncMock(spec=Breaches)
    response = await client.post("/users", json=ADA)
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [
        ["query", "args"],
        ["query", "kwargs"],
    ]


async def test_patch_of_a_dependency_is_not_seen(client: AsyncClient) -> None:
    # FastAPI keeps the function itself from when the router was created.
    with patch.object(dependencies, "get_breaches") as patched:
        response = await client.post("/users", json=ADA)
    patched.assert_not_called()
    assert response.status_code == 201
