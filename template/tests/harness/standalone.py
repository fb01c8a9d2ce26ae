"""The application on its own database, for tests that run their own event loop."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI

from tests.harness.databases import Databases

if TYPE_CHECKING:  # imported after the environment is set up, or when needed
    from app.settings import Settings
    from tests.harness.contract import Contract


@pytest.fixture
async def own_database_url(databases: Databases) -> AsyncIterator[str]:
    """The URL of a new database for this test alone."""
    async with databases.copy() as engine:
        yield engine.url.render_as_string(hide_password=False)


@pytest.fixture
def standalone_app(request: pytest.FixtureRequest, anyio_backend: str) -> FastAPI:
    """The application on its own database, not started.

    For sync tests: it shares nothing with the event loop of the async tests.
    """
    from app.main import create_app  # only after the environment is set up

    # Not parameters, or the guard against async fixtures in sync tests would refuse the test.
    # Here they are safe: `anyio_backend` lets anyio run them.
    settings: Settings = request.getfixturevalue("settings")
    url: str = request.getfixturevalue("own_database_url")
    return create_app(settings.model_copy(update={"database_url": url}))


@pytest.fixture
def contract(standalone_app: FastAPI) -> "Iterator[Contract]":
    """The schemathesis schema of the application, which runs until the test ends."""
    from tests.harness.contract import contract_of  # imports schemathesis, which is slow

    with contract_of(standalone_app) as contract:
        yield contract


@pytest.fixture
def contract_headers() -> dict[str, str]:
    """The headers of each request: override this in tests/fixtures.py if requests need a log-in."""
    return {}
