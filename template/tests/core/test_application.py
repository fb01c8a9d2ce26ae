"""What happens around all requests: start, state, stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from fastapi import FastAPI, Request

from app.core.application import build_app
from app.core.dependencies import SettingsDep
from app.main import create_app
from app.settings import Settings
from tests.harness.asgi import running
from tests.http_client import AsyncClient


async def test_startup_state_is_visible_in_a_request(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/started-at")
    async def read_started_at(request: Request) -> datetime:
        started_at: datetime = request.state.started_at
        return started_at

    response = await client.get("/started-at")
    assert datetime.fromisoformat(response.json()) <= datetime.now(UTC)


async def test_route_that_a_test_adds_is_gone_after_it(app: FastAPI, client: AsyncClient) -> None:
    assert (await client.get("/started-at")).status_code == 404
    assert "/started-at" not in app.openapi()["paths"]


async def test_endpoint_can_ask_for_the_settings(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/environment")
    async def read_environment(settings: SettingsDep) -> str:
        return settings.environment

    assert (await client.get("/environment")).json() == "test"


async def test_startup_and_shutdown_surround_the_service(settings: Settings) -> None:
    events = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        events.append("startup")
        yield {"greeting": "hello"}
        events.append("shutdown")

    async with running(build_app(settings, lifespan)) as running_app:
        assert running_app.lifespan_state == {"greeting": "hello"}
        assert events == ["startup"]
    assert events == ["startup", "shutdown"]


async def test_failing_startup_raises(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"broker": connect()}

    def connect() -> str:
        raise ConnectionError("no broker")

    with pytest.raises(ConnectionError, match="no broker"):
        async with running(build_app(settings, lifespan)):
            pass


async def test_application_without_settings_reads_the_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "staging")
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SECRET_KEY", "not-the-key-of-any-service-that-runs")
    assert create_app().state.settings.environment == "staging"
