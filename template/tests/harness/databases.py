"""The databases of a test run: migrated once, then copied for each use."""

import os
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
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.database import create_engine

ROOT = Path(__file__).parents[2]
# The workers of one run of pytest-xdist share the id.
RUN_ID = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:8]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")


class Databases(Protocol):
    """Databases at head, without rows, that belong to this worker of this run."""

    def shared(self) -> AbstractAsyncContextManager[AsyncEngine]:
        """Give an engine on the database that the worker's tests share."""
        ...

    def copy(self) -> AbstractAsyncContextManager[AsyncEngine]:
        """Give an engine on a database of its own; drop the database afterwards."""
        ...


def configured_url() -> URL | None:
    """Return TEST_DATABASE_URL, None where it is not set.

    Raises pytest.UsageError unless it names a test database whose driver is installed. That
    database itself is not touched: the run's own are made beside it, with names that begin so.
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
            f"TEST_DATABASE_URL wants the driver {url.drivername}, which is not there: {error}"
        ) from error
    if not is_in_memory(url) and "test" not in Path(url.database or "").name.lower():
        raise pytest.UsageError(
            f"TEST_DATABASE_URL names the database {url.database!r}, which is no test database: "
            "its name has to contain 'test', as in 'app_test', so that no real data is touched."
        )
    return url


def is_in_memory(url: URL) -> bool:
    """Say whether `url` stands for SQLite in the memory of the process."""
    return url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}


async def migrate(engine: AsyncEngine) -> None:
    """Bring the database of `engine` to the newest revision."""

    def upgrade(connection: Connection) -> None:
        config = Config(toml_file=ROOT / "pyproject.toml", attributes={"connection": connection})
        command.upgrade(config, "head")

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)


@asynccontextmanager
async def open_engine(url: URL, **options: Any) -> AsyncIterator[AsyncEngine]:
    """Give the engine that the application would make for `url`; dispose of it afterwards."""
    engine = create_engine(url.render_as_string(hide_password=False), **options)
    try:
        yield engine
    finally:
        await engine.dispose()
