"""The request's session, the engine behind it, and points in time."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.requests import HTTPConnection
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.core.database import READ_ONLY, UtcDateTime, add_listeners, get_session

table = Table(
    "core_test_points_in_time",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime),
)


@pytest.fixture
async def db_session(db_session: AsyncSession) -> AsyncSession:
    """A session on a database that has the table, until the test is rolled back."""
    connection = await db_session.connection()
    await connection.run_sync(table.create)
    return db_session


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (None, None),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        (
            datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))),
            datetime(2025, 12, 31, 22, tzinfo=UTC),
        ),
    ],
)
async def test_points_in_time_are_read_as_utc(
    db_session: AsyncSession, stored: datetime | None, read: datetime | None
) -> None:
    await db_session.execute(insert(table).values(at=stored))
    value = await db_session.scalar(select(table.c.at))
    assert value == read
    assert value is None or value.tzinfo is UTC


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_session_of_a_request_undoes_what_was_not_committed(
    app: FastAPI, db_session: AsyncSession, method: str
) -> None:
    await db_session.commit()
    request = HTTPConnection({"type": "http", "method": method})
    async with asynccontextmanager(get_session)(app.state.session_factory, request) as session:
        await session.execute(insert(table))
        await session.commit()
        await session.execute(insert(table))
    assert len((await db_session.execute(select(table))).all()) == 1


async def test_objects_stay_readable_after_a_commit(app: FastAPI) -> None:
    async with app.state.session_factory() as session:
        assert session.sync_session.expire_on_commit is False


@pytest.mark.committed
async def test_reader_does_not_wait_for_a_writer(app: FastAPI) -> None:
    factory: async_sessionmaker[AsyncSession] = app.state.session_factory
    async with factory() as writer, factory() as reader:
        await (await writer.connection()).run_sync(table.create)
        await reader.connection(execution_options=READ_ONLY)
        assert await reader.scalar(select(1)) == 1


@pytest.mark.committed
async def test_writers_that_read_first_wait_for_one_another(app: FastAPI) -> None:
    factory: async_sessionmaker[AsyncSession] = app.state.session_factory
    async with factory() as session:
        await (await session.connection()).run_sync(table.create)
        await session.commit()

    async def read_then_write() -> None:
        async with factory() as session:
            await session.execute(select(table))
            await asyncio.sleep(0)
            await session.execute(insert(table))
            await session.commit()

    await asyncio.gather(*(read_then_write() for _ in range(4)))
    async with factory() as session:
        assert len((await session.execute(select(table))).all()) == 4


def test_sqlite_enforces_foreign_keys_and_begins_for_real(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/test.db")
    add_listeners(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE child (parent_id REFERENCES parent)"))
    with engine.connect() as connection:
        connection.begin_nested().commit()  # without a BEGIN, it would commit for good
        connection.execute(text("INSERT INTO parent VALUES (1)"))
        connection.rollback()
        assert connection.scalar(text("SELECT count(*) FROM parent")) == 0
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        with pytest.raises(IntegrityError):
            connection.execute(text("INSERT INTO child VALUES (1)"))
    engine.dispose()
