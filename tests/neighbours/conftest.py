"""The application that the culprits misuse, and the pairs of tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.application import build_app
from app.settings import Settings
from tests.harness.asgi import RunningApp, running
from tests.harness.transaction import RolledBackTransaction
from tests.neighbours.pairs import pairs_of
from tests.neighbours.probe import NeighbourBase, router


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "culprit(outcomes): how the test has to end in each mode.")
    config.addinivalue_line("markers", "timing: what the test meets depends on timing.")


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> list[pytest.Item] | None:
    """Add the next tests after each culprit."""
    if not callable(obj) or not collector.istestfunction(obj, name):
        return None
    return list(pairs_of(collector, obj)) or None


@pytest.fixture(scope="session")
async def neighbours_tables(db_engine: AsyncEngine) -> AsyncIterator[None]:
    """The tables that the culprits write to."""
    async with db_engine.begin() as connection:
        await connection.run_sync(NeighbourBase.metadata.create_all)
    yield
    async with db_engine.begin() as connection:
        await connection.run_sync(NeighbourBase.metadata.drop_all)


@pytest.fixture
def db_session(neighbours_tables: None, db_session: AsyncSession) -> AsyncSession:
    """The test's session, with the tables, even if no test has used the application yet."""
    return db_session


@pytest.fixture(scope="session")
async def running_app(
    settings: Settings, neighbours_tables: None, rolled_back_transaction: RolledBackTransaction
) -> AsyncIterator[RunningApp]:
    """The application with the probe's routes, and a lifespan that keeps a cache."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"cache": []}

    app = build_app(settings, lifespan)
    app.include_router(router)
    async with running(app) as running_app:
        with running_app.bound_to(rolled_back_transaction.engine):
            yield running_app
