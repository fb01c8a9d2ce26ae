"""Run Alembic on the application's models and database."""

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, func, inspect, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

import app.models  # noqa: F401  (fills Base.metadata)
from app.core.config import load_settings
from app.core.database import Base, UtcDateTime, create_engine
from app.core.job_tables import is_of_jobs
from app.database import migration_options
from app.settings import Settings

with suppress(ImportError):  # only installed if the database is PostgreSQL
    # Alembic itself creates the type of an enum with its table, but never drops or changes it.
    import alembic_postgresql_enum

    # The job queue has its own type.
    alembic_postgresql_enum.set_configuration(
        alembic_postgresql_enum.Config(include_name=lambda name: not is_of_jobs(name))
    )


LOCK = 5_279_204_163_172_117_741  # any number, as long as it is always the same
LOCK_INTERVAL = 0.2  # seconds


def configure(**options: Any) -> None:
    """Configure Alembic with `options`, and those in app/database.py."""
    own = migration_options()
    render_own = own.pop("render_item", None)
    include_own = own.pop("include_name", None)

    def render_item(type_: str, item: Any, autogenerate: AutogenContext) -> str | Literal[False]:
        # A migration must outlive the application's code: it names the database's own type.
        if type_ == "type" and isinstance(item, UtcDateTime):
            return "sa.DateTime(timezone=True)"
        rendered: str | Literal[False] = render_own and render_own(type_, item, autogenerate)
        return rendered or False

    def include_name(name: str | None, type_: str, parents: Any) -> bool:
        # The tables of the job queue have no models.
        if type_ == "table" and is_of_jobs(name):
            return False
        return include_own is None or bool(include_own(name, type_, parents))

    defaults = {
        "target_metadata": Base.metadata,
        "render_item": render_item,
        "include_name": include_name,
    }
    context.configure(**{**defaults, **options, **own})


@contextmanager
def foreign_keys_ignored(connection: Connection) -> Iterator[None]:
    """Let a migration on SQLite replace tables, and keep the rows that refer to them.

    Otherwise `DROP TABLE` deletes these rows if they have ON DELETE CASCADE. No transaction may
    have begun: https://sqlite.org/lang_altertable.html#making_other_kinds_of_table_schema_changes
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def check_foreign_keys(connection: Connection) -> None:
    """Raise IntegrityError if a row on SQLite refers to one that does not exist."""
    if connection.dialect.name != "sqlite":
        return
    statement = "PRAGMA foreign_key_check"
    broken = {
        f"{child} refers to rows of {parent} that do not exist"
        for child, _, parent, _ in connection.exec_driver_sql(statement)
    }
    if broken:
        raise IntegrityError(statement, None, ValueError("; ".join(sorted(broken))))


@contextmanager
def one_at_a_time(connection: Connection) -> Iterator[None]:
    """Make others that migrate the same database wait; on SQLite, its transactions do."""
    if connection.dialect.name != "postgresql" or connection.in_transaction():
        yield
        return
    # Waiting in pg_advisory_lock would block CREATE INDEX CONCURRENTLY.
    while not connection.scalar(select(func.pg_try_advisory_lock(LOCK))):
        connection.rollback()
        time.sleep(LOCK_INTERVAL)
    connection.commit()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.scalar(select(func.pg_advisory_unlock(LOCK)))
            connection.commit()


@contextmanager
def numbers_kept(connection: Connection) -> Iterator[None]:
    """Keep numbering rows from the highest number when a migration on SQLite replaces a table.

    Otherwise the new table continues after its last row, see `number_rows_once`.
    """
    before = sequences(connection)
    yield
    for name, number in before.items():
        values = {"name": name, "number": max(number, sequences(connection).get(name, 0))}
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
        connection.execute(text(KEEP_NUMBER), values)


KEEP_NUMBER = """
    INSERT INTO sqlite_sequence (name, seq)
    SELECT name, :number FROM sqlite_schema WHERE type = 'table' AND name = :name
"""


def sequences(connection: Connection) -> dict[str, int]:
    """Return the highest number that each table on SQLite has given a row."""
    if connection.dialect.name != "sqlite" or not inspect(connection).has_table("sqlite_sequence"):
        return {}
    rows = connection.execute(text("SELECT name, seq FROM sqlite_sequence"))
    return {name: number or 0 for name, number in rows}


def migrate(connection: Connection) -> None:
    """Run the migrations that the command asks for on `connection`."""
    configure(
        connection=connection,
        # SQLite can alter little of a table: Alembic creates a new one and copies the rows.
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,  # even on SQLite, where app.core.database begins transactions
    )
    with (
        one_at_a_time(connection),
        foreign_keys_ignored(connection),
        context.begin_transaction(),
        numbers_kept(connection),
    ):
        context.run_migrations()
        check_foreign_keys(connection)


async def connect_and_migrate() -> None:
    """Run the migrations on the database that the settings name."""
    logging.basicConfig(format="%(message)s")
    for name in ("runtime.migration", "autogenerate"):
        logging.getLogger(f"alembic.{name}").setLevel(logging.INFO)
    settings = load_settings(Settings)
    # Not through a pooler, which would lose the lock of `one_at_a_time`.
    engine = create_engine(settings.database_direct_url or settings.database_url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        try:
            # Alembic begins the transaction, so that a migration can leave it: autocommit_block().
            connection = await stack.enter_async_context(engine.connect())
        except (OSError, SQLAlchemyError) as error:
            url = engine.url.render_as_string(hide_password=True)
            sys.exit(f"No connection to the database, {url}: {error}")
        await connection.run_sync(migrate)


def write_sql() -> None:
    """Print the migrations as SQL, for `--sql`."""
    configure(
        url=load_settings(Settings).database_url,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    write_sql()
elif (connection := context.config.attributes.get("connection")) is not None:
    migrate(connection)  # the tests pass their own
else:
    asyncio.run(connect_and_migrate())
