"""The request's session, its engine, and datetimes."""

import asyncio
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.requests import HTTPConnection
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DisconnectionError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.core.database import (
    READ_ONLY,
    SessionDep,
    UtcDateTime,
    add_listeners,
    begin_reading,
    complete_options,
    default_options,
    get_read_only_session,
    get_session,
    refuse_lost_connection,
)
from app.settings import Settings
from tests.conftest import MakeClient

table = Table(
    "core_test_points_in_time",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime),
)


@pytest.fixture
async def db_session(db_session: AsyncSession) -> AsyncSession:
    """A session on a database with the table, until the test is rolled back."""
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


@pytest.mark.committed
async def test_commit_that_fails_is_no_success(app: FastAPI, make_client: MakeClient) -> None:
    factory: async_sessionmaker[AsyncSession] = app.state.session_factory
    async with factory() as session:
        await session.execute(text("CREATE TABLE core_parents (id INTEGER PRIMARY KEY)"))
        await session.execute(
            text(
                "CREATE TABLE core_children (parent_id INTEGER "
                "REFERENCES core_parents DEFERRABLE INITIALLY DEFERRED)"
            )
        )
        await session.commit()

    @app.post("/children")
    async def create_child(session: SessionDep) -> None:
        await session.execute(text("INSERT INTO core_children VALUES (99)"))
        await session.commit()  # notices that the parent is missing

    client = await make_client(raise_app_exceptions=False)
    assert (await client.post("/children")).status_code == 500
    async with factory() as session:
        assert await session.scalar(text("SELECT count(*) FROM core_children")) == 0


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


@pytest.mark.parametrize(
    ("environment", "hidden"),
    [("development", False), ("test", False), ("staging", True), ("production", True)],
)
async def test_parameters_of_failed_statements_are_hidden_where_people_use_it(
    settings: Settings, environment: str, hidden: bool
) -> None:
    deployed = settings.model_copy(update={"environment": environment})
    assert complete_options({}, deployed)["hide_parameters"] is hidden
    assert complete_options({"hide_parameters": not hidden}, deployed)["hide_parameters"] != hidden


SERVER = "postgresql+asyncpg://host/name"


async def test_settings_limit_what_a_request_waits_for(settings: Settings) -> None:
    limits = {
        "database_url": SERVER,
        "database_pool_timeout": 1.5,
        "database_statement_timeout": 2.5,
        "database_lock_timeout": 0.5,
    }
    options = complete_options({"poolclass": None}, settings.model_copy(update=limits))
    assert "pool_size" not in options
    assert options["connect_args"] == {
        "timeout": 1.5,
        "command_timeout": 4.5,
        "server_settings": {"statement_timeout": "2500", "lock_timeout": "500"},
    }


@pytest.mark.parametrize(
    ("database", "options"), [("sqlite", [{"sqlite_begin": "DEFERRED"}]), ("postgresql", [])]
)
async def test_transaction_that_only_reads_costs_a_server_nothing(
    database: str, options: list[dict[str, str]]
) -> None:
    begun: list[dict[str, str]] = []

    async def connection(execution_options: dict[str, str]) -> None:
        begun.append(execution_options)

    bind = SimpleNamespace(dialect=SimpleNamespace(name=database))
    session: Any = SimpleNamespace(
        get_bind=lambda: bind, connection=connection, in_transaction=lambda: bool(begun)
    )
    assert await get_read_only_session(session) is session
    await begin_reading(session)
    assert begun == options


async def test_settings_can_lift_the_limits_of_the_server(settings: Settings) -> None:
    limits = {
        "database_url": SERVER,
        "database_statement_timeout": 0,
        "database_lock_timeout": 0,
    }
    options = complete_options({}, settings.model_copy(update=limits))
    assert options["connect_args"] == {"timeout": settings.database_pool_timeout}
    file = settings.model_copy(update={"database_url": "sqlite+aiosqlite:///./file.db"})
    assert "connect_args" not in complete_options({}, file)


async def test_own_options_prevail_over_the_settings(settings: Settings) -> None:
    server = settings.model_copy(update={"database_url": SERVER})
    own = {"connect_args": {"command_timeout": 1, "server_settings": {"lock_timeout": "1s"}}}
    connect_args = complete_options(own, server)["connect_args"]
    assert connect_args["command_timeout"] == 1
    assert connect_args["server_settings"]["lock_timeout"] == "1s"
    assert connect_args["server_settings"]["statement_timeout"] == "30000"
    assert connect_args["timeout"] == settings.database_pool_timeout


async def test_errors_of_asyncpg_at_connecting_are_those_of_a_database() -> None:
    class OperationalError(Exception):
        pass

    async def connect(**options: Any) -> str:
        if options:
            raise TimeoutError
        return "connected"

    dbapi = SimpleNamespace(
        asyncpg=SimpleNamespace(connect=connect), OperationalError=OperationalError
    )
    wrapped = default_options("asyncpg", dbapi)["connect_args"]["async_creator_fn"]
    assert await wrapped() == "connected"
    with pytest.raises(OperationalError, match="TimeoutError"):
        await wrapped(host="gone")


@pytest.mark.parametrize("closed", [False, True])
async def test_connection_that_was_closed_is_not_used(closed: bool) -> None:
    driver_connection = SimpleNamespace(is_closed=lambda: closed)
    connection = SimpleNamespace(driver_connection=driver_connection)
    with pytest.raises(DisconnectionError) if closed else nullcontext():
        refuse_lost_connection(connection)


async def test_other_drivers_are_asked_whether_they_are_connected() -> None:
    assert default_options("psycopg", None) == {"pool_pre_ping": True}
    assert "pool_pre_ping" not in default_options("aiosqlite", None)
    assert "pool_pre_ping" not in default_options("asyncpg", None)


def create_and_use(table: Table, path: Path) -> list[int]:
    """Create the table on SQLite; insert a row, delete it, and insert another; return the ids."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}/test.db")
    ids: list[Any] = []
    with engine.begin() as connection:
        table.create(connection)
        for _ in range(2):
            result = connection.execute(insert(table).values(name="Ada"))
            ids += result.inserted_primary_key or ()
            connection.execute(delete(table))
    engine.dispose()
    return ids


@pytest.mark.parametrize(("options", "second"), [({}, 2), ({"sqlite_autoincrement": False}, 1)])
def test_sqlite_gives_the_id_of_a_deleted_row_to_no_other(
    tmp_path: Path, options: dict[str, Any], second: int
) -> None:
    columns = Column("id", Integer, primary_key=True), Column("name", String)
    assert create_and_use(Table("things", MetaData(), *columns, **options), tmp_path) == [1, second]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ([Column("id", String, primary_key=True)], {}),
        ([Column("id", BigInteger, primary_key=True)], {}),
        ([Column("id", Integer, primary_key=True)], {"sqlite_with_rowid": False}),
        ([Column(name, Integer, primary_key=True) for name in ("one", "two")], {}),
        ([Column("id", ForeignKey("others.id"), primary_key=True)], {}),
    ],
    ids=["text", "bigint", "without rowid", "two columns", "foreign key"],
)
def test_tables_that_number_no_rows_are_as_before(
    tmp_path: Path, columns: list[Column[Any]], options: dict[str, Any]
) -> None:
    metadata = MetaData()
    Table("others", metadata, Column("id", Integer, primary_key=True))
    things = Table("things", metadata, *columns, **options)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/test.db")
    metadata.create_all(engine)
    engine.dispose()
    assert not things.dialect_options["sqlite"]["autoincrement"]


def test_commit_that_fails_on_sqlite_leaves_nothing_locked(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/test.db")
    add_listeners(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        child = "CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
        connection.execute(text(child))
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("INSERT INTO child VALUES (1)"))
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM child")) == 0
    engine.dispose()
