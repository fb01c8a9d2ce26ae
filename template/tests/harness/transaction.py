"""Rollback per test: all sessions of application and test work inside one transaction."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

from tests.harness.session import SavepointSession
from tests.harness.turns import Turns, served

READS = re.compile(
    r"[\s(]*(SELECT|VALUES|SHOW|EXPLAIN|PRAGMA|SET|SAVEPOINT|RELEASE|ROLLBACK TO)\b", re.I
)
WITH = re.compile(r"\s*WITH\b(?!.*\b(INSERT|UPDATE|DELETE|MERGE)\b)", re.I | re.S)
ENDS_TRANSACTION = re.compile(r"\s*(COMMIT|END|ABORT|ROLLBACK(?! TO\b))\b", re.I)


class SharedTransaction:
    """The one transaction that a test, its requests and their background tasks share."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.turns = Turns(self.end_idle_reads)
        self.open_sessions: list[SavepointSession] = []
        self.pending_writes = 0  # statements that a rollback of their session would undo
        self.commits = 0  # of sessions that had written
        self.executing = False

    @property
    def session_options(self) -> dict[str, Any]:
        """What a session factory needs to work in here: see SavepointSession."""
        return {
            "bind": self.connection,
            "join_transaction_mode": "create_savepoint",
            "sync_session_class": SavepointSession,
            "info": {"transaction": self},
        }

    async def end_idle_reads(self) -> None:
        """End the transactions that have only read and are idle: they keep a turn for nothing."""
        while self.open_sessions and self.open_sessions[-1].is_idle and not self.executing:
            await self.open_sessions[-1].end_read()

    def before_savepoint(self, *_: object) -> None:
        """Wait for the turn, called from within a session's greenlet."""
        await_only(self.turns.begin(served.get() or self.turns.test))

    def before_execute(self, *_: object) -> None:
        """Note that the connection is in use: already making a cursor may take time."""
        self.executing = True

    def before_cursor_execute(
        self, _connection: object, _cursor: object, statement: str, *_: object
    ) -> None:
        """Refuse a statement that would end the transaction."""
        if ENDS_TRANSACTION.match(statement):
            self.refuse_end()

    def after_cursor_execute(
        self, _connection: object, _cursor: object, statement: str, *_: object
    ) -> None:
        """Count a statement that has written, or tell those who wait that one has read."""
        self.executing = False
        if READS.match(statement) or WITH.match(statement):
            self.turns.notice()
        else:
            self.pending_writes += 1

    def handle_error(self, context: ExceptionContext) -> None:
        """Count a statement that has failed: PostgreSQL goes on after a rollback only."""
        if context.connection is self.connection.sync_connection:
            self.pending_writes += 1

    def refuse_end(self, *_: object) -> None:
        """Raise AssertionError: a commit here would write into the next test's database."""
        raise AssertionError(
            "The connection's transaction belongs to the test and was about to be ended. "
            "Commit the session instead, or mark the test with @pytest.mark.own_database."
        )


@asynccontextmanager
async def rolled_back_transaction(engine: AsyncEngine) -> AsyncIterator[SharedTransaction]:
    """Give a transaction in which nothing is for good."""
    async with engine.connect() as connection:
        outermost = await connection.begin()
        transaction = SharedTransaction(connection)
        listeners: dict[str, Callable[..., None]] = {
            "savepoint": transaction.before_savepoint,
            "before_execute": transaction.before_execute,
            "before_cursor_execute": transaction.before_cursor_execute,
            "after_cursor_execute": transaction.after_cursor_execute,
            "commit": transaction.refuse_end,
            "rollback": transaction.refuse_end,
        }
        for name, listener in listeners.items():
            event.listen(connection.sync_connection, name, listener)
        event.listen(engine.sync_engine, "handle_error", transaction.handle_error)
        try:
            yield transaction
            if engine.dialect.name == "postgresql" and outermost.is_active:
                # Deferred constraints wait for a commit, and here there is none.
                await connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        finally:
            for name, listener in listeners.items():
                event.remove(connection.sync_connection, name, listener)
            event.remove(engine.sync_engine, "handle_error", transaction.handle_error)
            await outermost.rollback()
