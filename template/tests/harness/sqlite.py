"""Test databases on SQLite, in files."""

import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests.harness.databases import DIRECTORY, RUN_ID, WORKER, is_in_memory, migrate, open_engine

LOCK_TIMEOUT = 1.0
"""How long, in seconds, cleaning waits for a lock."""
TABLES_OF_A_QUERY = 400
"""SQLite allows 500 parts in a compound SELECT."""


@dataclass
class Contents:
    """The contents of a database before the tests write to it."""

    schema_version: int
    tables: list[str]
    rows: dict[str, list[Any]] = field(default_factory=dict)
    """The rows of tables that are not empty, such as those that a migration has filled."""
    sequences: list[Any] = field(default_factory=list)


@dataclass
class SqliteDatabases:
    """Copies of one migrated file."""

    template: Path
    file: Path
    source: Path
    """The file whose copy replaces the worker's."""
    contents: Any = None

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[AsyncEngine]:
        """Yield an engine on the worker's file."""
        async with self._copy(self.file) as engine:
            yield engine
        self.close()
        if self.source != self.template:
            self.source.unlink()

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[AsyncEngine]:
        """Yield an engine on a new file; delete the file afterwards."""
        copy = self.template.with_stem(f"{self.template.stem}_{uuid.uuid4().hex}")
        async with self._copy(copy) as engine:
            yield engine

    @asynccontextmanager
    async def _copy(self, copy: Path) -> AsyncIterator[AsyncEngine]:
        with deleted_afterwards(copy):
            shutil.copy(self.template, copy)
            async with open_engine(file_url(copy)) as engine:
                yield engine

    async def keep(self) -> None:
        """Let `replace` restore the current contents."""
        self.source = self.file.with_stem(f"{self.file.stem}_kept")
        with closing(open_file(self.source)) as kept:
            self.connection.backup(kept)
        self.contents = None

    async def remember(self, _: AsyncConnection) -> None:
        """Remember the contents of the worker's file."""
        database = self.connection
        tables = list_tables(database)
        self.contents = Contents(
            schema_version(database),
            tables,
            {name: rows(database, name) for name in not_empty(database, tables)},
            sequences(database),
        )

    async def clean(self, _: AsyncConnection) -> bool:
        """Delete the rows that are not remembered."""
        before: Contents = self.contents
        database = self.connection
        try:
            if schema_version(database) != before.schema_version:
                return False
            database.execute("BEGIN IMMEDIATE")
            for name in not_empty(database, before.tables):
                if name not in before.rows:
                    database.execute(f"DELETE FROM {quoted(name)}")  # noqa: S608
            if sequences(database) != before.sequences:
                database.execute("DELETE FROM sqlite_sequence")
                database.executemany("INSERT INTO sqlite_sequence VALUES (?, ?)", before.sequences)
            database.execute("COMMIT")
            # A trigger may have written to another table.
            filled = not_empty(database, before.tables)
            return {name: rows(database, name) for name in filled} == before.rows
        except sqlite3.Error:  # it is locked, for example
            return False

    async def replace(self) -> None:
        """Replace the worker's file with the source."""
        self.close()
        with deleted_afterwards(self.file):
            pass
        shutil.copy(self.source, self.file)

    @cached_property
    def connection(self) -> sqlite3.Connection:
        """A connection to the worker's file that does not enforce foreign keys."""
        return open_file(self.file)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if "connection" in vars(self):
            self.connection.close()
            del self.connection


@asynccontextmanager
async def sqlite_databases(url: URL | None) -> AsyncIterator[SqliteDatabases]:
    """Migrate the file that all others are copied from."""
    file = Path(str(worker_url(url).database))
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with deleted_afterwards(file.with_stem(f"{file.stem}_template")) as template:
        async with open_engine(file_url(template)) as engine:
            await migrate(engine)
        yield SqliteDatabases(template, file, source=template)
    if file.parent == DIRECTORY:
        with suppress(OSError):  # another worker still uses it, or has deleted it
            DIRECTORY.rmdir()


def worker_url(url: URL | None) -> URL:
    """Return the URL of the worker's file: next to the one in `url`, if there is one."""
    named = DIRECTORY / "test.db" if url is None or is_in_memory(url) else Path(str(url.database))
    return file_url(named.with_stem(f"{named.stem}_{RUN_ID}_{WORKER}"))


def file_url(file: Path) -> URL:
    """Return the URL of a database file."""
    return URL.create("sqlite+aiosqlite", database=str(file))


def open_file(file: Path) -> sqlite3.Connection:
    """Connect to a file without the application's settings."""
    connection = sqlite3.connect(file, timeout=LOCK_TIMEOUT, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")  # it need not survive a power failure
    return connection


@contextmanager
def deleted_afterwards(file: Path) -> Iterator[Path]:
    """Yield `file`; delete it afterwards, with SQLite's other files."""
    try:
        yield file
    finally:
        for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
            file.with_name(name).unlink(missing_ok=True)


def schema_version(database: sqlite3.Connection) -> int:
    """Return a number that increases with every change of the schema."""
    version: int = database.execute("PRAGMA schema_version").fetchone()[0]
    return version


def list_tables(database: sqlite3.Connection) -> list[str]:
    """Return the names of the tables, without SQLite's own."""
    query = "SELECT name FROM sqlite_schema WHERE type = 'table'"
    return [name for (name,) in database.execute(query) if not name.startswith("sqlite_")]


def not_empty(database: sqlite3.Connection, tables: list[str]) -> list[str]:
    """Return which of `tables` have rows."""
    found = []
    for start in range(0, len(tables), TABLES_OF_A_QUERY):
        part = tables[start : start + TABLES_OF_A_QUERY]
        query = " UNION ALL ".join(
            f"SELECT {number} WHERE EXISTS (SELECT 1 FROM {quoted(name)})"  # noqa: S608
            for number, name in enumerate(part)
        )
        found += [part[number] for (number,) in database.execute(query)]
    return found


def rows(database: sqlite3.Connection, table: str) -> list[Any]:
    """Return all rows of a table."""
    return database.execute(f"SELECT * FROM {quoted(table)}").fetchall()  # noqa: S608


def sequences(database: sqlite3.Connection) -> list[Any]:
    """Return the last ids of the tables with AUTOINCREMENT."""
    query = "SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'"
    return rows(database, "sqlite_sequence") if database.execute(query).fetchone() else []


def quoted(name: str) -> str:
    """Quote the name of a table."""
    return '"' + name.replace('"', '""') + '"'
