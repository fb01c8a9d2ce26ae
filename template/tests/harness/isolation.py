"""The two ways to isolate a test: rolled back, or committed."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
)
from typing import Any

import pytest
from anyio import CancelScope
from sqlalchemy import Connection, Engine, QueuePool, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from app.core.database import READ_ONLY
from app.core.jobs import Jobs, local_queue
from tests.harness.application import RunningApp
from tests.harness.databases import Databases
from tests.harness.guard import WAYS_OUT, Guard, Phase, guard
from tests.harness.leftovers import clearing_up
from tests.harness.objects import kept_up_to_date
from tests.harness.patience import TICK
from tests.harness.transaction import PATIENCE, RolledBackTransaction

COMMITTED, ROLLED_BACK = "committed", "rolled_back"
WAYS = {COMMITTED: Phase.COMMITTED, "own_database": Phase.COMMITTED, ROLLED_BACK: Phase.ROLLED_BACK}
"""The markers. In 0.1.0, `committed` was called `own_database`."""

NOT_COMMITTED = (
    "A request starts while the test has uncommitted writes, which the application could not see "
    "in production. Call `await db_session.commit()` before the request."
)
NOT_ROLLED_BACK = (
    "A request starts while `db_session` is in a failed transaction. "
    "Call `await db_session.rollback()` before the request."
)
STILL_SERVED = (
    "A request waits for another request, which does not end. In a rolled-back test, requests run "
    f"one after the other. {WAYS_OUT}"
)
IN_USE = (
    "A fixture has written to the test database and still uses it, so the state to restore after "
    "a committed test is unknown. Close the connection of the fixture before it yields."
)
OPEN_TRANSACTIONS = (
    "The test has not ended all of its transactions: {} still open. "
    "Close the session, as `async with session_factory() as session:` does."
)


class Isolation(ABC):
    """How a test is isolated from the others."""

    engine: AsyncEngine
    """Connected to the test database, or in the test's transaction."""

    def __init__(
        self, databases: Databases, transaction: RolledBackTransaction, guard: Guard
    ) -> None:
        self.guard = guard
        self._databases = databases
        self._transaction = transaction
        self._session: AsyncSession | None = None
        has_workers = transaction.db_engine.dialect.name == "postgresql"
        self.jobs = Jobs(queue=None if has_workers else local_queue())
        """On SQLite, the test's queue, with the jobs of committed transactions."""
        self._has_failed = False
        """Whether the test's own session must be rolled back."""

    async def remember(self) -> None:
        """Remember the contents of the database before the first test, and what fixtures add."""
        if self.guard.written_by_fixtures and not self._is_used_by_fixtures():
            await self.disconnect()
            await self._databases.keep()
            self.guard.written_by_fixtures = False
        if self._databases.contents is None:
            await self._databases.remember(await self._transaction.connect())

    def _is_used_by_fixtures(self) -> bool:
        """Return whether anything except the harness has an open connection."""
        pools = {engine.pool for engine in self.guard.engines}
        used = sum(pool.checkedout() for pool in pools if isinstance(pool, QueuePool))
        return used > self._transaction.is_connected

    async def disconnect(self, keep: Collection[Engine] = ()) -> None:
        """Close all connections to the worker's database, except those of the engines `keep`."""
        for engine in self.guard.engines.difference(keep):
            if engine.dialect.is_async:
                await AsyncEngine(engine).dispose()
            else:
                engine.dispose()
        self.guard.engines.intersection_update(self._transaction.own_engines)
        if not keep:
            await self._transaction.disconnect()

    @abstractmethod
    def around_test(self) -> AbstractAsyncContextManager[None]:
        """Surround the test, and all fixtures that use the database."""

    @abstractmethod
    def request(self) -> AbstractAsyncContextManager[None]:
        """Surround one HTTP request."""

    @abstractmethod
    def check_session(self) -> None:
        """Raise IsolationError if a request would see uncommitted writes of the test."""

    @abstractmethod
    def installed(self, app: RunningApp) -> AbstractContextManager[None]:
        """Let the sessions of `app` use this isolation."""

    async def clean(self, keep: Collection[Engine] = ()) -> None:
        """Restore the remembered contents of the database; close connections in doubt."""
        guard = self.guard
        await self.disconnect(() if guard.connection_in_doubt else keep)
        connection = await self._transaction.connect()
        if guard.schema_in_doubt or not await self._databases.clean(connection):
            await self.disconnect()
            await self._databases.replace()
            self._transaction.has_been_used = True  # before the source was kept
        guard.connection_in_doubt = guard.schema_in_doubt = guard.written_by_fixtures = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Yield the test's own session, which shows the current contents of the database."""
        # On SQLite, reading in this session must not keep the application from writing.
        engine = self.engine.execution_options(**READ_ONLY)
        factory = async_sessionmaker(engine, expire_on_commit=False, info=self.jobs.info)
        async with factory() as session:
            event.listen(session.sync_session, "after_soft_rollback", self._note_failure)
            with kept_up_to_date(session):
                self._session = session
                yield session
                self._session = None

    def info_for(self, app: RunningApp) -> dict[str, Any]:
        """Return the `info` of the sessions of `app`, with the queue of the test."""
        return Jobs(app.app.state.jobs.known, self.jobs.queue).info

    def _note_failure(self, session: Session, _: SessionTransaction) -> None:
        self._has_failed = not session.is_active

    @asynccontextmanager
    async def _test_in(self, phase: Phase) -> AsyncIterator[None]:
        """Watch the test, end what it leaves running, and blame it."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        with self.guard.test_in(phase):
            try:
                async with clearing_up(self.guard.refusals):
                    yield
            finally:
                with CancelScope(shield=True):
                    await self._close_transactions(others)

    async def _close_transactions(self, others: set[asyncio.Task[Any]]) -> None:
        if left := self.open_transactions(others):
            self.guard.refusals.append(OPEN_TRANSACTIONS.format(len(left)))
        for connection in left:
            await close(connection)
        self.guard.open.clear()

    @abstractmethod
    def open_transactions(self, others: set[asyncio.Task[Any]]) -> list[Connection]:
        """Return the open transactions, except those of `others`."""


class RolledBack(Isolation):
    """One transaction for the whole test, and one request at a time."""

    def __init__(
        self, databases: Databases, transaction: RolledBackTransaction, guard: Guard
    ) -> None:
        super().__init__(databases, transaction, guard)
        self.engine = transaction.engine
        self._turn = asyncio.Lock()
        self._requests = 0

    def open_transactions(self, others: set[asyncio.Task[Any]]) -> list[Connection]:
        """Return the test's transactions that are still open."""
        return self._transaction.open_transactions(others)

    @asynccontextmanager
    async def around_test(self) -> AsyncIterator[None]:
        """Roll the test back."""
        await self.remember()
        async with self._transaction.of_a_test(), self._test_in(Phase.ROLLED_BACK):
            yield
        if self._transaction.was_lost:
            await self.clean()
        await self.disconnect(self._transaction.own_engines)

    def installed(self, app: RunningApp) -> AbstractContextManager[None]:
        """Let the sessions of `app` use the test's transaction."""
        return app.bound_to(self.engine, self.info_for(app))

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Take a turn for the whole request, including its background tasks.

        Raises IsolationError if the previous request does not end.
        """
        await self._take_turn()
        self._requests += 1
        try:
            yield
        finally:
            self._turn.release()

    def check_session(self) -> None:
        """Raise IsolationError if the test has uncommitted writes."""
        session = self._session
        if self._has_failed:
            self.guard.refuse(NOT_ROLLED_BACK)
        if self._transaction.is_held_by_test or (session is not None and has_changes(session)):
            self.guard.refuse(NOT_COMMITTED)

    async def _take_turn(self) -> None:
        waited, last = 0.0, self._requests
        while True:
            try:
                async with asyncio.timeout(TICK):
                    await self._turn.acquire()
            except TimeoutError:
                waited = waited + TICK if last == self._requests else 0.0
                last = self._requests
                if waited >= PATIENCE:
                    self.guard.refuse(STILL_SERVED)
            else:
                return


class Committed(Isolation):
    """Real commits, the application's own pool, and a database that is cleaned up afterwards."""

    def __init__(
        self, databases: Databases, transaction: RolledBackTransaction, guard: Guard
    ) -> None:
        super().__init__(databases, transaction, guard)
        self.engine = transaction.db_engine

    @asynccontextmanager
    async def around_test(self) -> AsyncIterator[None]:
        """Clean up the database afterwards."""
        await self.remember()
        if self.guard.written_by_fixtures:
            self.guard.refuse(IN_USE)
        if self._transaction.has_been_used:  # a rollback does not reset sequences
            self._transaction.has_been_used = False
            await self.clean(self._transaction.own_engines)
        async with self._test_in(Phase.COMMITTED):
            yield
        with CancelScope(shield=True):
            await self.clean(self._transaction.own_engines)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Do nothing: the database isolates requests."""
        yield

    def check_session(self) -> None:
        """Do nothing: nobody else sees uncommitted writes."""

    def installed(self, app: RunningApp) -> AbstractContextManager[None]:
        """Let `app` use its own engine."""
        self._transaction.own_engines.add(app.engine.sync_engine)
        return app.bound_to(app.engine, self.info_for(app))

    def open_transactions(self, others: set[asyncio.Task[Any]]) -> list[Connection]:
        """Return the open transactions of all engines."""
        return [
            connection
            for connection, task in self.guard.open.items()
            if task not in others and not connection.closed and not connection.invalidated
        ]


OwnDatabase = Committed
"""The name in 0.1.0, which older tests import."""


def isolation_of(
    item: pytest.Item, databases: Databases, transaction: RolledBackTransaction
) -> Isolation:
    """Return the isolation that the closest marker or the configuration asks for."""
    markers = [marker.name for marker in item.iter_markers() if marker.name in WAYS]
    way = WAYS[next(iter(markers), item.config.getini("test_isolation"))]
    if way is Phase.COMMITTED:
        return Committed(databases, transaction, guard)
    return RolledBack(databases, transaction, guard)


async def close(connection: Connection) -> None:
    """Close a connection that was left open."""
    if connection.dialect.is_async:
        await AsyncConnection(AsyncEngine(connection.engine), connection).close()
    else:
        connection.close()


def has_changes(session: AsyncSession) -> bool:
    """Return whether a session has changes that are not flushed."""
    return bool(session.new or session.deleted or any(map(session.is_modified, session.dirty)))
