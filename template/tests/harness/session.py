"""The session of a rolled-back test: its transaction is a savepoint."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, NestedTransaction, event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only, greenlet_spawn

from tests.harness.turns import Participant

if TYPE_CHECKING:
    from tests.harness.transaction import SharedTransaction


class SavepointSession(Session):
    """A session whose transaction is a savepoint in the test's transaction.

    Its commit releases the savepoint; its rollback goes back there, and undoes what the
    session did. It would undo as well what others have committed since, such as a background
    task while the request's session is open: so a session with nothing to undo only releases.
    """

    savepoint: NestedTransaction | None = None
    writes_before: int
    commits_before: int
    read_ended: asyncio.Event | None = None
    changes: int = 0
    opened_by: Participant

    @property
    def transaction(self) -> "SharedTransaction":
        """The transaction that the session works in."""
        transaction: SharedTransaction = self.info["transaction"]
        return transaction

    @property
    def has_pending_writes(self) -> bool:
        """Whether there is something in the database that a rollback would undo."""
        return self.savepoint is not None and self.transaction.pending_writes > self.writes_before

    @property
    def is_clean(self) -> bool:
        """Whether neither the database nor the session holds anything to commit."""
        unflushed = self.new or self.deleted or any(map(self.is_modified, self.dirty))
        return not unflushed and not self.has_pending_writes

    @property
    def is_idle(self) -> bool:
        """Whether the transaction has only read, and in a request is not under way."""
        under_way = self.changes or self.is_ending_read or self.opened_by.requests
        return self.is_clean and not under_way

    async def end_read(self) -> None:
        """End a transaction that is idle, whatever its owner is about."""
        self.read_ended = asyncio.Event()
        await greenlet_spawn(super().commit)
        self.read_ended.set()

    def wait_for_end_of_read(self) -> None:
        """Wait until `end_read` is through; called in the greenlet of the owner."""
        if self.is_ending_read:
            assert self.read_ended is not None
            await_only(self.read_ended.wait())

    @property
    def is_ending_read(self) -> bool:
        """Whether `end_read` is under way."""
        return self.read_ended is not None and not self.read_ended.is_set()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark what `end_read` must not come between."""
        self.wait_for_end_of_read()
        self.changes += 1
        try:
            yield
        finally:
            self.changes -= 1

    def get_bind(self, *args: Any, **options: Any) -> Engine | Connection:
        """Return the connection, for the next statement."""
        self.wait_for_end_of_read()
        return super().get_bind(*args, **options)

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Write what has changed."""
        with self.changing():
            super().flush(objects)

    def commit(self) -> None:
        """Release the savepoint."""
        with self.changing():
            super().commit()

    def release_if_nothing_to_undo(self) -> None:
        """Release the savepoint, unless the session has written.

        Raises AssertionError when going back would undo more than that.
        """
        if self.savepoint is None or not self.savepoint.is_active:
            return
        if not self.has_pending_writes:
            self.savepoint.commit()
        elif self.transaction.commits > self.commits_before:
            raise AssertionError(
                "A session is rolled back that has written something, and since then another one "
                "has committed. On the one connection of a test, both would be undone: "
                "mark the test with @pytest.mark.own_database."
            )

    def rollback(self) -> None:
        """Undo what the session did since its last commit."""
        with self.changing():
            self.release_if_nothing_to_undo()
            super().rollback()

    def close(self) -> None:
        """Let go of all objects, undo what was not committed."""
        with self.changing():
            self.release_if_nothing_to_undo()
            super().close()


@event.listens_for(SavepointSession, "after_begin")
def session_begins(
    session: SavepointSession, transaction: SessionTransaction, connection: Connection
) -> None:
    """Note where the session's transaction begins."""
    if transaction.parent is None:
        session.savepoint = connection.get_nested_transaction()
        session.writes_before = session.transaction.pending_writes
        session.commits_before = session.transaction.commits
        session.transaction.open_sessions.append(session)
        turns = session.transaction.turns
        assert turns.current is not None
        session.opened_by = turns.current
        turns.engage(session.opened_by)


@event.listens_for(SavepointSession, "after_commit")
def session_commits(session: SavepointSession) -> None:
    """Note that there is something now that no other session may undo."""
    session.transaction.commits += session.has_pending_writes


@event.listens_for(SavepointSession, "after_transaction_end")
def session_ends(session: SavepointSession, transaction: SessionTransaction) -> None:
    """Note that what the session wrote is committed, or undone."""
    if transaction.parent is None and session.savepoint is not None:
        session.savepoint = None
        session.transaction.pending_writes = session.writes_before
        session.transaction.open_sessions.remove(session)
        session.transaction.executing = False  # also after a statement that failed
        session.transaction.turns.disengage(session.opened_by)
