"""The probe application in place of the service, under the same fixtures."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.application import build_app
from app.settings import Settings
from tests.harness.asgi import RunningApp, running
from tests.harness.isolation import OwnDatabase
from tests.isolation.probe import ProbeBase, router


@pytest.fixture(scope="session")
async def probe_table(db_engine: AsyncEngine) -> AsyncIterator[None]:
    """The table that the probes write to."""
    async with db_engine.begin() as connection:
        await connection.run_sync(ProbeBase.metadata.create_all)
    yield
    async with db_engine.begin() as connection:
        await connection.run_sync(ProbeBase.metadata.drop_all)


@pytest.fixture(scope="session")
async def running_app(
    db_engine: AsyncEngine, settings: Settings, probe_table: None
) -> AsyncIterator[RunningApp]:
    """The application with the probe's routes and a lifespan that leaves something to see."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        yield {"visits": 0}

    app = build_app(settings, lifespan)
    app.include_router(router)
    with OwnDatabase(db_engine).installed(app):
        async with running(app) as running_app:
            yield running_app
