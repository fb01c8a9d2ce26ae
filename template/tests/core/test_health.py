"""The probes of whatever runs the service: is it alive, can it serve?"""

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core import health
from app.core.database import create_engine, create_session_factory, get_session_factory
from tests.http_client import AsyncClient


async def test_service_is_alive(client: AsyncClient) -> None:
    response = await client.get("/livez")
    assert response.status_code == 200
    assert response.json() == {"status": "ok"}


async def test_service_is_ready_when_its_database_answers(client: AsyncClient) -> None:
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"status": "ok"}


async def test_service_is_not_ready_without_its_database(
    app: FastAPI, client: AsyncClient, db_engine: AsyncEngine
) -> None:
    if db_engine.dialect.name == "sqlite":
        gone = db_engine.url.set(database="/no/such/directory/test.db")
    else:
        gone = db_engine.url.set(host="127.0.0.1", port=1, query={})
    factory = create_session_factory(create_engine(gone.render_as_string(hide_password=False)))
    app.dependency_overrides[get_session_factory] = lambda: factory
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"detail": "The database does not answer"}


@pytest.mark.committed
async def test_service_is_not_ready_when_its_database_takes_too_long(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that is in the pool: aiosqlite leaks one whose opening is cancelled.
    assert (await client.get("/readyz")).status_code == 200
    monkeypatch.setattr(health, "DATABASE_TIMEOUT", 0)
    assert (await client.get("/readyz")).status_code == 503
