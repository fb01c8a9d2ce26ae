"""Test databases on SQLite: files, or the memory of the process."""

import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness.databases import RUN_ID, WORKER, is_in_memory, migrate, open_engine

# A second connection waits this long, in seconds, for the locks of a test.
LOCK_TIMEOUT = {"timeout": 1}


@dataclass(frozen=True)
class SqliteDatabases:
    """Copies of one migrated file."""

    template: Path
    in_memory: bool

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[AsyncEngine]:
        """Give an engine on the database that the worker's tests share."""
        if self.in_memory:
            async with open_engine(URL.create("sqlite+aiosqlite")) as engine:
                await migrate(engine)
                yield engine
        else:
            async with self._copy(connect_args=LOCK_TIMEOUT) as engine:
                yield engine

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[AsyncEngine]:
        """Give an engine on a database of its own; delete the file afterwards."""
        async with self._copy() as engine:
            yield engine

    @asynccontextmanager
    async def _copy(self, **options: Any) -> AsyncIterator[AsyncEngine]:
        copy = self.template.with_stem(f"{self.template.stem}_{uuid.uuid4().hex}")
        with deleted_afterwards(copy):
            shutil.copy(self.template, copy)
            async with open_engine(file_url(copy), **options) as engine:
                yield engine


@asynccontextmanager
async def sqlite_databases(url: URL | None, directory: Path) -> AsyncIterator[SqliteDatabases]:
    """Migrate the file that all others are copied from.

    It lies beside the one that `url` names, without a `url` in `directory`.
    """
    in_memory = url is not None and is_in_memory(url)
    named = directory / "test.db" if url is None or in_memory else Path(str(url.database))
    with deleted_afterwards(named.with_stem(f"{named.stem}_{RUN_ID}_{WORKER}")) as template:
        async with open_engine(file_url(template)) as engine:
            await migrate(engine)
        yield SqliteDatabases(template, in_memory)


def file_url(file: Path) -> URL:
    """Return the URL of a database file."""
    return URL.create("sqlite+aiosqlite", database=str(file))


@contextmanager
def deleted_afterwards(file: Path) -> Iterator[Path]:
    """Give `file`; delete it afterwards, with what SQLite keeps beside it."""
    try:
        yield file
    finally:
        for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
            file.with_name(name).unlink(missing_ok=True)
