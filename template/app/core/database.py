"""The database: base class of the models, engine, and the session of a request."""

from collections.abc import AsyncIterator, Callable
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
    TypeDecorator,
    event,
    make_url,
)
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase
from starlette.datastructures import State

from app.core.config import ServiceSettings
from app.database import ENGINE_OPTIONS, METADATA_OPTIONS, TYPE_ANNOTATION_MAP


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: aware datetimes in and out, also on SQLite, which keeps no offset."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store in UTC; a naive datetime is taken as local time, as Python does."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Constraints are named by rule, so that a migration can name what it drops:
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


def create_engine(url: str, **options: Any) -> AsyncEngine:
    """Make the engine for `url`, an SQLAlchemy URL, with those of app/database.py and `options`."""
    engine = create_async_engine(url, **{"pool_pre_ping": True, **ENGINE_OPTIONS, **options})
    add_listeners(engine.sync_engine)
    return engine


def pool_options(settings: ServiceSettings) -> dict[str, Any]:
    """Return the options of create_engine by which `settings` size the pool; SQLite has no server.

    Its writers take turns, and its readers wait for nobody, however many connections there are.
    """
    if make_url(settings.database_url).get_backend_name() == "sqlite":
        return {}
    return {
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_max_overflow,
        "pool_timeout": settings.database_pool_timeout,
    }


def add_listeners(engine: Engine) -> None:
    """Teach `engine` what its database needs."""
    for name, listener in LISTENERS.get(engine.dialect.name, {}).items():
        event.listen(engine, name, listener)


def set_up_sqlite_connection(dbapi_connection: Any, _: object) -> None:
    """Enforce foreign keys, let readers work beside a writer."""
    # The driver's own transaction control begins too late for SAVEPOINT and DDL:
    # https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#sqlite-transactions
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    # A commit survives a killed process. When the machine loses power, the last ones may be lost.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def begin_sqlite_transaction(connection: Connection) -> None:
    """Begin for real, what the driver no longer does, and as a writer unless told otherwise.

    A transaction that has read cannot wait for another writer, it fails when it wants to write:
    https://sqlite.org/lang_transaction.html#read_transactions_versus_write_transactions
    """
    mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {mode}")


LISTENERS: dict[str, dict[str, Callable[..., None]]] = {
    "sqlite": {"connect": set_up_sqlite_connection, "begin": begin_sqlite_transaction}
}


def create_session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Make the application's one session factory.

    Objects stay readable after a commit: reloading them on access is not possible in async code.
    """
    return async_sessionmaker(engine, expire_on_commit=False)


def core_state(connection: HTTPConnection) -> State:
    """Return the state of the application that `build_app` made, also in one that it mounts."""
    state: State = connection.app.state
    if not hasattr(state, "session_factory"):
        state = getattr(connection.state, "core", state)
    if not hasattr(state, "session_factory"):
        raise RuntimeError(
            "This application has no session factory. One that build_app (app/core/application.py) "
            "made has one, and so has what it mounts, once its lifespan has begun."
        )
    return state


async def get_session_factory(connection: HTTPConnection) -> async_sessionmaker[AsyncSession]:
    """Return the session factory, for work that outlives a dependency.

    Background tasks, WebSockets and streams open short sessions of their own with it.
    """
    factory: async_sessionmaker[AsyncSession] = core_state(connection).session_factory
    return factory


# Execution options of a connection for a transaction that only reads: on SQLite, it goes on
# beside a writer instead of waiting for it.
READ_ONLY = {"sqlite_begin": "DEFERRED"}
# https://www.rfc-editor.org/rfc/rfc9110#name-safe-methods
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

SessionFactoryDep = Annotated[async_sessionmaker[AsyncSession], Depends(get_session_factory)]


async def get_session(
    factory: SessionFactoryDep, connection: HTTPConnection
) -> AsyncIterator[AsyncSession]:
    """Yield the request's session; what the endpoint does not commit is rolled back."""
    async with factory() as session:
        if connection.scope.get("method") in SAFE_METHODS:
            await session.connection(execution_options=READ_ONLY)
        yield session


# "function": closed before the response is sent, so that no slow client and
# no background task keeps a connection.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
