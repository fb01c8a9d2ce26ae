"""The application's startup, state and shutdown."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Request
from fastapi.requests import HTTPConnection
from sqlalchemy import select

from app.core.application import build_app
from app.core.database import SessionDep, get_session_factory, pool_options
from app.core.dependencies import SettingsDep
from app.settings import Settings
from tests.harness.asgi import running
from tests.http_client import AsyncClient


@pytest.mark.parametrize("run", [1, 2])
async def test_startup_state_is_visible_in_a_request(
    app: FastAPI, client: AsyncClient, run: int
) -> None:
    assert "/greeting" not in app.openapi()["paths"]  # the other run adds it

    @app.get("/greeting")
    async def read_greeting(request: Request) -> str:
        greeting: str = request.state.greeting
        return greeting

    assert (await client.get("/greeting")).json() == "hello"


async def test_endpoint_can_ask_for_the_settings(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/environment")
    async def read_environment(settings: SettingsDep) -> str:
        return settings.environment

    assert (await client.get("/environment")).json() == "test"


async def test_mounted_application_has_the_session_and_the_settings(
    app: FastAPI, client: AsyncClient
) -> None:
    mounted = FastAPI()
    app.mount("/mounted", mounted)

    @mounted.get("/environment")
    async def read_environment(session: SessionDep, settings: SettingsDep) -> str:
        assert await session.scalar(select(1)) == 1
        return settings.environment

    assert (await client.get("/mounted/environment")).json() == "test"


async def test_application_of_another_make_is_told_what_it_lacks() -> None:
    request = HTTPConnection({"type": "http", "app": FastAPI()})
    with pytest.raises(RuntimeError, match="no session factory"):
        await get_session_factory(request)


async def test_startup_and_shutdown_surround_the_service(settings: Settings) -> None:
    events = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        events.append("startup")
        yield {"greeting": "hello"}
        events.append("shutdown")

    async with running(build_app(settings, lifespan)) as running_app:
        assert running_app.lifespan_state["greeting"] == "hello"
        assert events == ["startup"]
    assert events == ["startup", "shutdown"]


async def test_settings_size_the_pool_of_a_server(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {}

    sizes = {"database_pool_size": 3, "database_max_overflow": 2, "database_pool_timeout": 1.5}
    sized = settings.model_copy(update=sizes)
    engine = build_app(sized, lifespan).state.session_factory().bind
    server = sized.model_copy(update={"database_url": "server://localhost/name"})
    assert pool_options(server) == {"pool_size": 3, "max_overflow": 2, "pool_timeout": 1.5}
    file = sized.model_copy(update={"database_url": "sqlite:///./file.db"})
    assert pool_options(file) == {}
    assert engine.dialect.name == "sqlite" or engine.pool.size() == 3


async def test_failing_startup_raises(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"broker": connect()}

    def connect() -> str:
        raise ConnectionError("no broker")

    with pytest.raises(ConnectionError, match="no broker"):
        async with running(build_app(settings, lifespan)):
            pass
