"""The databases of a test run: migrated once, and copied for each worker."""

import os
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.core.database import create_engine

ROOT = Path(__file__).parents[2]
# The workers of one run of pytest-xdist share the id.
RUN_ID = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:8]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
DIRECTORY = Path(tempfile.gettempdir()).resolve() / f"test-databases-{RUN_ID}"
"""The directory of the run's databases, if TEST_DATABASE_URL is not set."""


class Databases(Protocol):
    """The database of this worker, and more for tests that need another one."""

    contents: Any
    """The remembered contents of the worker's database, or None."""

    def shared(self) -> AbstractAsyncContextManager[AsyncEngine]:
        """Yield an engine on the worker's migrated database, which its tests share."""
        ...

    def copy(self) -> AbstractAsyncContextManager[AsyncEngine]:
        """Yield an engine on another migrated database; drop the database afterwards."""
        ...

    async def remember(self, connection: AsyncConnection) -> None:
        """Remember the contents of the worker's database, for `clean`."""
        ...

    async def clean(self, connection: AsyncConnection) -> bool:
        """Delete the rows that were added since `remember`, and reset the sequences.

        Return False if that is not enough, because something else has changed.
        """
        ...

    async def keep(self) -> None:
        """Let `replace` restore the current contents. Nobody may be connected."""
        ...

    async def replace(self) -> None:
        """Replace the worker's database. Nobody may be connected."""
        ...


def configured_url() -> URL | None:
    """Return TEST_DATABASE_URL, or None if it is not set.

    Raises pytest.UsageError unless it names a test database whose driver is installed. The run
    does not touch that database: it creates others next to it, whose names begin with its name.
    """
    value = os.environ.get("TEST_DATABASE_URL")
    if not value:
        return None
    try:
        url = make_url(value)
        url.get_dialect().import_dbapi()
    except ArgumentError as error:
        raise pytest.UsageError(f"TEST_DATABASE_URL is not a database URL: {value!r}") from error
    except ImportError as error:
        raise pytest.UsageError(
            f"TEST_DATABASE_URL needs the driver {url.drivername}, which is not installed: {error}"
        ) from error
    if not is_in_memory(url) and "test" not in Path(url.database or "").name.lower():
        raise pytest.UsageError(
            f"TEST_DATABASE_URL names {url.database!r}, which is not a test database. To protect "
            "real data, its name must contain 'test', as in 'app_test'."
        )
    return url


def is_in_memory(url: URL) -> bool:
    """Return whether `url` is an in-memory SQLite database."""
    return url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}


async def migrate(engine: AsyncEngine) -> None:
    """Migrate the database of `engine` to the newest revision."""

    def upgrade(connection: Connection) -> None:
        config = Config(toml_file=ROOT / "pyproject.toml", attributes={"connection": connection})
        command.upgrade(config, "head")

    async with engine.connect() as connection:
        await connection.run_sync(upgrade)


@asynccontextmanager
async def open_engine(url: URL, **options: Any) -> AsyncIterator[AsyncEngine]:
    """Yield the engine that the application would create for `url`; dispose of it afterwards."""
    engine = create_engine(url.render_as_string(hide_password=False), **options)
    try:
        yield engine
    finally:
        await engine.dispose()
