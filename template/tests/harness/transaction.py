"""Rollback per test: all sessions of application and test work inside one transaction."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, NestedTransaction, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session, SessionTransaction

READS = re.compile(r"\s*(SELECT|VALUES|SHOW|EXPLAIN|PRAGMA|SET|SAVEPOINT|RELEASE|ROLLBACK TO)\b", re.I)
WITH = re.compile(r"\s*WITH\b(?!.*\b(INSERT|UPDATE|DELETE|MERGE)\b)", re.I | re.S)
ENDS_TRANSACTION = re.compile(r"\s*(COMMIT|END|ABORT|ROLLBACK(?! TO\b))\b", re.I)


@dataclass(eq=False)
class TestTransaction:
    """The one transaction that a test, its requests and their background tasks share."""

    __test__ = False  # for pytest: not a class of tests

    connection: AsyncConnection
    pending_writes: int = 0  # statements whose effect no session has committed

    @property
    def session_options(self) -> dict[str, Any]:
        """What a session factory needs to work in here: see SavepointSession."""
        return {
            "bind": self.connection,
            "join_transaction_mode": "create_savepoint",
            "sync_session_class": SavepointSession,
            "info": {"transaction": self},
        }

    def before_execute(self, _c: object, _cursor: object, statement: str, *_: object) -> None:
        """Count each statement, and refuse one that would end the transaction."""
        if ENDS_TRANSACTION.match(statement):
            self.refuse_end()
        self.pending_writes += 1

    def after_execute(self, _c: object, _cursor: object, statement: str, *_: object) -> None:
        """Take back the count of a statement that only read. One that failed stays counted."""
        if READS.match(statement) or WITH.match(statement):
            self.pending_writes -= 1

    def refuse_end(self, *_: object) -> None:
        """Raise AssertionError: committing here would write into the next test's database."""
        raise AssertionError(
            "The connection's transaction belongs to the test and was about to be ended. "
            "Commit the session instead, or mark the test with @pytest.mark.own_database."
        )


class SavepointSession(Session):
    """A session whose transaction is a savepoint in the test's transaction.

    Its commit releases the savepoint; its rollback goes back there, and undoes what the
    session did. It would undo as well what others have committed since, such as a background
    task while the request's session is open: so a session with nothing to undo only releases.
    """

    savepoint: NestedTransaction | None = None
    writes_before: int = 0

    @property
    def has_pending_writes(self) -> bool:
        """Whether there is something in the database that a rollback would undo."""
        transaction: TestTransaction = self.info["transaction"]
        return self.savepoint is not None and transaction.pending_writes > self.writes_before

    def release_if_clean(self) -> None:
        """Release the savepoint, unless there is something to undo."""
        if self.savepoint is not None and self.savepoint.is_active and not self.has_pending_writes:
            self.savepoint.commit()

    def rollback(self) -> None:
        """Undo what the session did since its last commit."""
        self.release_if_clean()
        super().rollback()

    def close(self) -> None:
        """Let go of all objects, undo what was not committed."""
        self.release_if_clean()
        super().close()


@event.listens_for(SavepointSession, "after_begin")
def remember_savepoint(
    session: SavepointSession, transaction: SessionTransaction, connection: Connection
) -> None:
    """Note where the session's transaction begins."""
    if transaction.parent is None:
        session.savepoint = connection.get_nested_transaction()
        session.writes_before = session.info["transaction"].pending_writes


@event.listens_for(SavepointSession, "after_transaction_end")
def forget_savepoint(session: SavepointSession, transaction: SessionTransaction) -> None:
    """Note that the session's writes are committed, or undone."""
    if transaction.parent is None and session.savepoint is not None:
        session.info["transaction"].pending_writes = session.writes_before
        session.savepoint = None


@asynccontextmanager
async def rolled_back_transaction(engine: AsyncEngine) -> AsyncIterator[TestTransaction]:
    """Give a transaction in which nothing is for good."""
    async with engine.connect() as connection:
        outermost = await connection.begin()
        transaction = TestTransaction(connection)
        listeners = {
            "before_cursor_execute": transaction.before_execute,
            "after_cursor_execute": transaction.after_execute,
            "commit": transaction.refuse_end,
            "rollback": transaction.refuse_end,
        }
        for name, listener in listeners.items():
            event.listen(connection.sync_connection, name, listener)
        try:
            yield transaction
            if engine.dialect.name == "postgresql":  # deferred constraints wait for a commit
                await connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        finally:
            for name, listener in listeners.items():
                event.remove(connection.sync_connection, name, listener)
            await outermost.rollback()
