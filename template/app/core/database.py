"""The database: the base class of models, the engine, and the session of a request."""

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    PoolResetState,
    Table,
    TypeDecorator,
    event,
    make_url,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase
from starlette.datastructures import State

from app.core.config import ServiceSettings
from app.core.unavailable import tell_apart
from app.database import ENGINE_OPTIONS, METADATA_OPTIONS, TYPE_ANNOTATION_MAP


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, even on SQLite, which stores no UTC offset."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC. A naive datetime is local time, as in Python."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Every constraint gets a name, so that a migration can drop it:
# https://alembic.sqlalchemy.org/en/latest/naming.html
NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The declarative base of all models; `app/database.py` may change its rules."""

    metadata = MetaData(**({"naming_convention": NAMING_CONVENTION} | METADATA_OPTIONS))
    type_annotation_map: ClassVar = {datetime: UtcDateTime} | TYPE_ANNOTATION_MAP


@event.listens_for(Table, "before_create")
def number_rows_once(table: Table, *_: object, **__: object) -> None:
    """Use AUTOINCREMENT on SQLite, so that the id of a deleted row is never reused.

    Somebody may still have the id, for example in an access token. This also applies to tables
    that a migration creates. A model with its own `sqlite_autoincrement` is not changed.
    """
    column = table.autoincrement_column
    is_integer = column is not None and column.type.compile(dialect=SQLITE) == "INTEGER"
    has_rowid = table.dialect_options["sqlite"]["with_rowid"]
    if is_integer and has_rowid and "sqlite_autoincrement" not in set(table.dialect_kwargs):
        table.dialect_kwargs["sqlite_autoincrement"] = True


SQLITE = sqlite.dialect()
SQLITE_TIMEOUT = 30.0
"""How long, in seconds, a writer waits for the others."""
CLIENT_DELAY = 2.0
"""How much longer than the server, in seconds, the client waits before it ends a statement."""


def create_engine(url: str, **options: Any) -> AsyncEngine:
    """Create the engine for an SQLAlchemy URL, with `options` and those in app/database.py."""
    parsed = make_url(url)
    defaults = default_options(parsed.get_driver_name(), parsed.get_dialect().import_dbapi())
    engine = create_async_engine(url, **completed({**ENGINE_OPTIONS, **options}, defaults))
    add_listeners(engine.sync_engine)
    return engine


def default_options(driver: str, dbapi: Any) -> dict[str, Any]:
    """Return the default engine options for a driver, given its DBAPI module."""
    if driver == "asyncpg":  # refuse_lost_connection replaces the ping
        return {"connect_args": {"async_creator_fn": make_connect(dbapi)}}
    if driver == "aiosqlite":  # a connection to a file is never lost
        return {"connect_args": {"timeout": SQLITE_TIMEOUT}}
    return {"pool_pre_ping": True}


def make_connect(dbapi: Any) -> Callable[..., Any]:
    """Return asyncpg's `connect` with errors that SQLAlchemy recognizes as database errors."""

    async def connect(**options: Any) -> Any:
        try:
            return await dbapi.asyncpg.connect(**options)
        except OSError as error:  # nothing listens there, or responds in time
            raise dbapi.OperationalError(str(error) or type(error).__name__, error) from error

    return connect


def completed(own: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `own` with `defaults` for what is missing, also in nested mappings."""
    both = {**defaults, **own}
    for name in defaults.keys() & own.keys():
        if isinstance(own[name], Mapping) and isinstance(defaults[name], Mapping):
            both[name] = completed(own[name], defaults[name])
    return both


def complete_options(own: Mapping[str, Any], settings: ServiceSettings) -> dict[str, Any]:
    """Return the create_engine options `own`, with those of `settings` for what is missing."""
    # The parameters of a failed statement can be email addresses or password hashes.
    is_deployed = settings.environment not in {"development", "test"}
    options: dict[str, Any] = {"hide_parameters": is_deployed}
    if "poolclass" not in own:  # for example, NullPool has no size
        options |= pool_options(settings)
    if make_url(settings.database_url).get_driver_name() == "asyncpg":
        options["connect_args"] = timeouts(settings)
    return completed(own, options)


def pool_options(settings: ServiceSettings) -> dict[str, Any]:
    """Return the pool options of create_engine, or none for SQLite.

    On SQLite, writers take turns and readers never wait, however many connections there are.
    """
    if make_url(settings.database_url).get_backend_name() == "sqlite":
        return {}
    return {
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_max_overflow,
        "pool_timeout": settings.database_pool_timeout,
    }


def timeouts(settings: ServiceSettings) -> dict[str, Any]:
    """Return the options of asyncpg's `connect` that limit how long a request waits.

    The server cancels a statement that takes too long. If the server does not respond, because its
    machine is frozen or the network is down, the client gives up.
    """
    limits = {
        "statement_timeout": settings.database_statement_timeout,
        "lock_timeout": settings.database_lock_timeout,
    }
    server = {name: f"{limit * 1000:.0f}" for name, limit in limits.items() if limit}
    options: dict[str, Any] = {"timeout": settings.database_pool_timeout}
    if server:  # some connection poolers reject these
        options["server_settings"] = server
    if settings.database_statement_timeout:
        options["command_timeout"] = settings.database_statement_timeout + CLIENT_DELAY
    return options


def add_listeners(engine: Engine) -> None:
    """Add the event listeners for the database and the driver of `engine`."""
    event.listen(engine, "handle_error", tell_apart)
    for kind in (engine.dialect.name, engine.dialect.driver):
        for name, listener in LISTENERS.get(kind, {}).items():
            event.listen(engine, name, listener)


def set_up_sqlite_connection(dbapi_connection: Any, _: object) -> None:
    """Enforce foreign keys, and let readers work while another connection writes."""
    # The driver begins transactions too late for SAVEPOINT and DDL:
    # https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#sqlite-transactions
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    # Commits survive if the process is killed. A power failure can lose the last ones.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def begin_sqlite_transaction(connection: Connection) -> None:
    """Begin a transaction, since the driver no longer does; by default, as a writer.

    A transaction that has read cannot wait for another writer: it fails when it tries to write.
    https://sqlite.org/lang_transaction.html#read_transactions_versus_write_transactions
    """
    mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {mode}")


def end_sqlite_transaction(dbapi_connection: Any, _: object, state: PoolResetState) -> None:
    """Roll back a transaction that a failed commit left open, which still holds its locks.

    A deferred foreign key or a full disk can make a commit fail.
    """
    driver_connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    if state.asyncio_safe and driver_connection.in_transaction:
        dbapi_connection.rollback()


def refuse_lost_connection(dbapi_connection: Any, *_: object) -> None:
    """Raise DisconnectionError if the server has closed the connection; makes no round trip."""
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError


LISTENERS: dict[str, dict[str, Callable[..., None]]] = {
    "sqlite": {
        "connect": set_up_sqlite_connection,
        "begin": begin_sqlite_transaction,
        "reset": end_sqlite_transaction,
    },
    "asyncpg": {"checkout": refuse_lost_connection},
}


def create_session_factory(engine: AsyncEngine, **options: Any) -> async_sessionmaker[AsyncSession]:
    """Create the session factory of the application; `options` are for its sessions.

    Objects stay readable after a commit, because async code cannot reload them on access.
    """
    return async_sessionmaker(engine, expire_on_commit=False, **options)


def core_state(connection: HTTPConnection) -> State:
    """Return the state of the application that `build_app` built, even in one that it mounts."""
    state: State = connection.app.state
    if not hasattr(state, "session_factory"):
        state = getattr(connection.state, "core", state)
    if not hasattr(state, "session_factory"):
        raise RuntimeError(
            "This application has no session factory. Applications that build_app "
            "(app/core/application.py) builds have one. So do those that they mount, once the "
            "lifespan has begun."
        )
    return state


async def get_session_factory(connection: HTTPConnection) -> async_sessionmaker[AsyncSession]:
    """Return the session factory, for work that outlives a dependency.

    Background tasks, WebSockets and streams use it to open their own short sessions.
    """
    factory: async_sessionmaker[AsyncSession] = core_state(connection).session_factory
    return factory


# Execution options for a read-only transaction: on SQLite, it does not wait for writers.
READ_ONLY = {"sqlite_begin": "DEFERRED"}
# https://www.rfc-editor.org/rfc/rfc9110#name-safe-methods
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

SessionFactoryDep = Annotated[async_sessionmaker[AsyncSession], Depends(get_session_factory)]


async def begin_reading(session: AsyncSession) -> None:
    """Begin a read-only transaction unless one has begun. On PostgreSQL, do nothing."""
    if session.get_bind().dialect.name == "sqlite" and not session.in_transaction():
        await session.connection(execution_options=READ_ONLY)


async def get_session(
    factory: SessionFactoryDep, connection: HTTPConnection
) -> AsyncIterator[AsyncSession]:
    """Yield the session of the request. Changes that are not committed are rolled back."""
    async with factory() as session:
        if connection.scope.get("method") in SAFE_METHODS:
            await begin_reading(session)
        yield session


# "function" closes it before the response is sent, so that slow clients and background tasks do
# not hold a connection.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def get_read_only_session(session: SessionDep) -> AsyncSession:
    """Return the session of the request, for an endpoint of any method that only reads."""
    await begin_reading(session)
    return session


ReadOnlySessionDep = Annotated[AsyncSession, Depends(get_read_only_session, scope="function")]
