"""What committed tests can show, and what is cleaned up after them."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.database import READ_ONLY, create_engine
from app.settings import Settings
from tests.harness.databases import ROOT
from tests.harness.isolation import Committed
from tests.harness.transaction import RolledBackTransaction
from tests.http_client import AsyncClient
from tests.isolation.probe import Note, Seed

pytestmark = [pytest.mark.committed, pytest.mark.usefixtures("probe_table")]
twice = pytest.mark.parametrize("run", [1, 2])


@twice
async def test_commits_are_real_and_gone_after_the_test(
    client: AsyncClient, db_session: AsyncSession, db_engine: AsyncEngine, run: int
) -> None:
    assert list(await db_session.scalars(select(Note.name))) == []
    await db_session.rollback()
    await client.post("/probe/notes/a")
    async with db_engine.connect() as another_connection:
        assert list(await another_connection.scalars(select(Note.name))) == ["a"]


@twice
async def test_rows_that_refer_to_one_another_are_gone_after_the_test(
    db_session: AsyncSession, run: int
) -> None:
    parent = Note(name="a")
    db_session.add(parent)
    await db_session.flush()
    assert parent.id == 1
    db_session.add(Note(name="b", parent_id=parent.id))
    await db_session.commit()


@twice
async def test_rows_that_migrations_have_stored_are_put_back(
    db_session: AsyncSession, run: int
) -> None:
    script = ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml"))
    stored = await db_session.scalars(text("SELECT version_num FROM alembic_version"))
    assert set(stored) == set(script.get_heads())
    await db_session.execute(text("DELETE FROM alembic_version"))
    await db_session.execute(text("INSERT INTO alembic_version VALUES ('spoilt')"))
    await db_session.commit()


@twice
@pytest.mark.parametrize("change", ["update", "delete"])
async def test_rows_that_were_there_before_are_put_back(
    db_session: AsyncSession, change: str, run: int
) -> None:
    seed = (await db_session.scalars(select(Seed))).one()
    assert (seed.id, seed.name) == (1, "sown")
    if change == "update":
        seed.name = "spoilt"
    else:
        await db_session.delete(seed)
    await db_session.commit()


@twice
async def test_schema_is_put_back(isolation: Committed, db_session: AsyncSession, run: int) -> None:
    async with isolation.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE of_one_test (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("ALTER TABLE isolation_probe_notes ADD COLUMN more TEXT"))
    assert list(await db_session.scalars(select(Note.name))) == []  # still there, with its keys


@twice
async def test_session_state_is_gone_after_the_test(isolation: Committed, run: int) -> None:
    is_sqlite = isolation.engine.dialect.name == "sqlite"
    read = "PRAGMA query_only" if is_sqlite else "SELECT current_setting('app.tenant', true)"
    change = "PRAGMA query_only = ON" if is_sqlite else "SET app.tenant = 'a'"
    async with AsyncExitStack() as stack:
        for _ in range(3):  # otherwise, the pool could give the next test another one
            connection = await stack.enter_async_context(isolation.engine.connect())
            await connection.execution_options(**READ_ONLY)
            assert await connection.scalar(text(read)) in {0, None, ""}
            await connection.execute(text(change))
            await connection.commit()
            assert await connection.scalar(text(read)) in {1, "a"}


@twice
async def test_commits_of_any_engine_are_gone_after_the_test(
    db_session: AsyncSession, settings: Settings, run: int
) -> None:
    engine = create_engine(settings.database_url)  # nobody disposes of it
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO isolation_probe_notes (name) VALUES ('a')"))
    assert list(await db_session.scalars(select(Note.name))) == ["a"]


async def test_one_of_two_racing_requests_wins(client: AsyncClient) -> None:
    responses = await asyncio.gather(*(client.post("/probe/notes/same") for _ in range(2)))
    assert sorted(response.status_code for response in responses) == [200, 409]


async def test_sessions_have_connections_of_their_own(isolation: Committed) -> None:
    async with isolation.session() as one, isolation.session() as two:
        connections = [await one.connection(), await two.connection()]
        assert connections[0].sync_connection is not connections[1].sync_connection


async def test_background_work_waits_for_the_next_rolled_back_test(
    rolled_back_transaction: RolledBackTransaction,
) -> None:
    await rolled_back_transaction.connect()
    await rolled_back_transaction.disconnect()
    async with AsyncSession(rolled_back_transaction.engine) as session:
        task = asyncio.create_task(session.execute(text("SELECT 1")))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.wait({task})


@twice
async def test_a_test_without_fixtures_is_cleaned_up_after(settings: Settings, run: int) -> None:
    engine = create_engine(settings.database_url)
    async with engine.begin() as connection:
        rows = await connection.execute(text("SELECT name FROM isolation_probe_notes"))
        assert rows.all() == []
        await connection.execute(text("INSERT INTO isolation_probe_notes (name) VALUES ('a')"))
