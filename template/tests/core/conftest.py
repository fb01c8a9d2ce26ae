"""The application without features: these tests pass whatever app/main.py adds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from app.core.application import build_app
from app.settings import Settings
from tests.harness.asgi import RunningApp, running
from tests.harness.transaction import RolledBackTransaction


@pytest.fixture(scope="session")
async def running_app(
    settings: Settings, rolled_back_transaction: RolledBackTransaction
) -> AsyncIterator[RunningApp]:
    """The application that app/core builds, with a lifespan that yields a greeting."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "hello"}

    async with running(build_app(settings, lifespan)) as running_app:
        with running_app.bound_to(rolled_back_transaction.engine):
            yield running_app
