"""The fixtures of the project, with the probe application instead of the service."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.application import build_app
from app.settings import Settings
from tests.harness.asgi import RunningApp, running
from tests.harness.guard import IsolationError, guard
from tests.harness.transaction import RolledBackTransaction
from tests.isolation.probe import ProbeBase, Seed, router

ExpectRefusal = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def expect_refusal() -> ExpectRefusal:
    """Expects a refusal, so that it does not fail the test."""

    @contextmanager
    def expect_refusal(reason: str) -> Iterator[None]:
        with pytest.raises(IsolationError, match=reason):
            yield
        assert guard.refusals
        guard.refusals.clear()

    return expect_refusal


@pytest.fixture(scope="session")
async def probe_table(db_engine: AsyncEngine) -> AsyncIterator[None]:
    """The tables of the probes, with one row."""
    async with db_engine.begin() as connection:
        await connection.run_sync(ProbeBase.metadata.create_all)
        await connection.execute(insert(Seed).values(id=1, name="sown"))
    yield
    async with db_engine.begin() as connection:
        await connection.run_sync(ProbeBase.metadata.drop_all)


@pytest.fixture(scope="session")
async def running_app(
    settings: Settings, probe_table: None, rolled_back_transaction: RolledBackTransaction
) -> AsyncIterator[RunningApp]:
    """The application with the probe's routes, and a lifespan with visible effects."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"visits": 0, "cache": {}}

    app = build_app(settings, lifespan)
    app.include_router(router)
    async with running(app) as running_app:
        with running_app.bound_to(rolled_back_transaction.engine):
            yield running_app
