"""The health probes: is the service alive, and is it ready?"""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core import health, migrations
from app.core.config import ROOT
from app.core.database import create_engine, create_session_factory, get_session_factory
from app.core.migrations import Revisions, read_revisions
from app.core.stopping import Stopping
from tests.http_client import AsyncClient

VERSIONS = "core_test_versions"
NONE = Revisions(frozenset(), frozenset())
OLD, NEW = Revisions(frozenset("a"), frozenset("a")), Revisions(frozenset("ab"), frozenset("b"))
BRANCHES = Revisions(frozenset("abc"), frozenset("bc"))


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


async def test_service_is_not_ready_while_it_stops(
    app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = Stopping(timeout=1)
    monkeypatch.setattr(app.state, "stopping", stopping)
    assert (await client.get("/readyz")).status_code == 200
    stopping.begin()
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"detail": "The service is stopping"}


@pytest.mark.committed
async def test_service_is_not_ready_when_its_database_takes_too_long(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Puts a connection into the pool: aiosqlite leaks one whose opening is cancelled.
    assert (await client.get("/readyz")).status_code == 200
    monkeypatch.setattr(health, "DATABASE_TIMEOUT", 0)
    assert (await client.get("/readyz")).status_code == 503


async def test_database_that_hangs_is_asked_once(
    app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, hangs = [], asyncio.Event()

    async def ask(_: object) -> None:
        asked.append(True)
        while not hangs.is_set():  # a driver that cannot be cancelled
            with suppress(asyncio.CancelledError):
                await hangs.wait()

    monkeypatch.setattr(health, "ask", ask)
    monkeypatch.setattr(health, "DATABASE_TIMEOUT", 0)
    responses = [await client.get("/readyz") for _ in range(3)]
    assert [response.status_code for response in responses] == [503, 503, 503]
    assert len(asked) == 1
    hangs.set()
    monkeypatch.setattr(health, "DATABASE_TIMEOUT", 10)
    assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("in_database", "in_code", "expected"),
    [
        (None, NONE, False),
        (None, OLD, True),
        ([], OLD, True),
        (["a"], OLD, False),
        (["a"], NEW, True),
        (["b"], NEW, False),
        (["b"], OLD, False),  # a deployment has migrated the database ahead of this process
        (["b"], BRANCHES, True),
        (["b", "c"], BRANCHES, False),
    ],
)
async def test_service_is_not_ready_when_its_database_lacks_migrations(
    in_database: list[str] | None,
    in_code: Revisions,
    expected: bool,
    client: AsyncClient,
    db_session: AsyncSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migrations, "migration_options", lambda: {"version_table": VERSIONS})
    monkeypatch.setattr(health, "read_revisions", lambda: in_code)
    if in_database is not None:
        await db_session.execute(text(f"CREATE TABLE {VERSIONS} (version_num VARCHAR(32))"))
        for revision in in_database:
            insert = f"INSERT INTO {VERSIONS} VALUES ('{revision}')"  # noqa: S608
            await db_session.execute(text(insert))
        await db_session.commit()
    response = await client.get("/readyz")
    assert response.status_code == (503 if expected else 200)
    assert not expected or response.json() == {"detail": "The database lacks migrations"}


async def test_revisions_are_those_of_the_project() -> None:
    script = ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml"))
    assert read_revisions().heads == set(script.get_heads())
    assert read_revisions().known >= read_revisions().heads


async def test_code_without_migrations_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    assert read_revisions.__wrapped__() == NONE
    assert "Cannot tell whether the database is migrated" in caplog.text
