"""Every operation of the OpenAPI document, called with what it allows and what it forbids.

Schemathesis runs the application on an event loop of its own, so it has one of its own, on a
database of its own: https://schemathesis.readthedocs.io/en/stable/guides/pytest/
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

# The same examples in each run, and few enough to wait for.
BOUNDED = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
NEW_USER: dict[str, Any] = {"email": "ada@example.com", "password": "correct horse battery"}


@pytest.fixture
def contract(standalone_app: FastAPI) -> Iterator[OpenApiSchema]:
    """The OpenAPI document of the application, which runs until the test is over."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", standalone_app)
    yield schema
    shutdown_lifespans()


@pytest.fixture
def authorization(contract: OpenApiSchema) -> dict[str, str]:
    """The header of a user who has signed up and logged in."""
    contract["/users"]["POST"].Case(body=NEW_USER).call()
    login: dict[str, Any] = {"username": NEW_USER["email"], "password": NEW_USER["password"]}
    form = "application/x-www-form-urlencoded"
    response = contract["/token"]["POST"].Case(body=login, media_type=form).call()
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


@pytest.mark.timeout(180)  # some hundred requests
def test_every_operation_answers_as_declared(
    contract: OpenApiSchema, authorization: dict[str, str]
) -> None:
    for operations in contract.values():
        for operation in operations.values():
            allowed, forbidden = map(operation.as_strategy, GenerationMode)

            @BOUNDED
            @given(case=st.one_of(allowed, forbidden))
            def call(case: Case[Any]) -> None:
                if case.operation.path == "/items/feed":
                    case.query["follow"] = "false"  # the stream would not end
                case.call_and_validate(
                    headers=authorization,
                    # An address may look like one and yet be refused, as those at `.test` are.
                    excluded_checks=[positive_data_acceptance],
                )

            call()


def test_every_operation_is_called(contract: OpenApiSchema, standalone_app: FastAPI) -> None:
    called = {(method, path) for path, methods in contract.items() for method in methods}
    declared = {
        (method.upper(), path)
        for path, methods in standalone_app.openapi()["paths"].items()
        for method in methods
    }
    assert {(method.upper(), path) for method, path in called} == declared
