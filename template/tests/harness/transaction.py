"""Rollback per test: all transactions of a test are savepoints in a single transaction."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NoReturn

from anyio import CancelScope
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.dialects import registry
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncTransaction,
    create_async_engine,
)

from app.database import ENGINE_OPTIONS
from tests.harness.guard import WAYS_OUT, Guard, guard
from tests.harness.patience import GRACE, wait_patiently
from tests.harness.statements import effect_of

PATIENCE = 5.0
"""How long, in seconds, a statement waits for another transaction that has written."""

OVERLAP = (
    "Two transactions overlap: one has uncommitted writes, and another one continues. On the "
    f"single connection of a rolled-back test, they cannot be separated. {WAYS_OUT}"
)
ENDED_BY_HAND = (
    "The statement would end the transaction of the rolled-back test. "
    f"Commit the session instead of executing COMMIT or ROLLBACK. {WAYS_OUT}"
)
ISOLATION_LEVEL = (
    "A connection asks for another isolation level, but the only transaction of a rolled-back test "
    f"has already begun. {WAYS_OUT}"
)
CONNECTS = re.compile("connect_args|creator|async_creator|isolation_level|max_overflow|pool")
"""The engine options that concern connections and the pool."""
LOST = (
    "The connection of the rolled-back test was lost, and with it everything that the test stored. "
    f"A cancelled statement or a stopped server can cause this. {WAYS_OUT}"
)


class RolledBackTransaction:
    """The transaction of a test, and the engine for all sessions in it.

    A transaction of that engine creates a savepoint with its first statement, releases it on
    commit, and rolls back to it on rollback. Savepoints must be nested, but transactions overlap,
    so only one transaction has a savepoint at a time. If it has only read, it gives up the
    savepoint when another one executes a statement. It loses nothing, since READ COMMITTED shows
    what others have committed in between. If it has written, it keeps the savepoint until it ends,
    and the others wait, as they would for its locks.
    """

    def __init__(self, db_engine: AsyncEngine, guard: Guard) -> None:
        self.engine = create_async_engine(
            url_of_shared_dialect(db_engine.url),
            **{name: value for name, value in ENGINE_OPTIONS.items() if not CONNECTS.match(name)},
            creator=self._share,
            pool_reset_on_return=None,
            pool_size=20,
            max_overflow=-1,
        )
        self.db_engine = db_engine
        self.own_engines = {db_engine.sync_engine}
        """The engines whose connections stay open after a test."""
        self.has_been_used = False
        self.was_lost = False
        self._guard = guard
        guard.rolled_back_engine = self.engine.sync_engine
        self._connection: AsyncConnection | None = None
        self._dbapi_connection: Any = None
        self._running = asyncio.Event()  # a test's transaction is open
        self._statement = asyncio.Lock()  # held while one is executed
        self._ended = asyncio.Event()  # the holder's transaction
        self._lost = False
        self._holder: Connection | None = None  # of the savepoint
        self._holder_has_written = False
        self._holder_has_set = False
        self._cancelled: asyncio.CancelledError | None = None
        self._open: dict[Connection | None, asyncio.Task[Any] | None] = {}
        self._task_of_fixtures: asyncio.Task[Any] | None = None
        self._listen()

    def _listen(self) -> None:
        engine = self.engine.sync_engine
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "commit", self._commit)
        event.listen(engine, "rollback", self._roll_back)
        for operation in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.listen(engine, operation, partial(self._run, operation))
        event.listen(engine, "handle_error", self._handle_error)

    # ---- For the fixtures ----

    @asynccontextmanager
    async def of_a_test(self) -> AsyncIterator[None]:
        """Run the engine in a transaction that is rolled back.

        Raises IntegrityError if a deferred constraint is violated, since a commit would check it.
        """
        connection = await self.connect()
        outermost = await connection.begin()
        self._task_of_fixtures = asyncio.current_task()
        self.has_been_used = True
        self._running.set()
        self.was_lost = False
        try:
            yield
            await self._pause()
            if not self._lost and connection.dialect.name == "postgresql":
                await connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
            self._lost = self._lost or self._was_ended()
        finally:
            with CancelScope(shield=True):
                await self._pause()
                await self._end_test(outermost)

    async def _pause(self) -> None:
        """Let background work wait for the next test."""
        if self._holder_has_written:
            await wait_patiently(self._ended.wait, GRACE)
        self._running.clear()
        async with self._statement:
            self._forget_holder()

    async def _end_test(self, outermost: AsyncTransaction) -> None:
        if self._lost:
            self._guard.refusals.append(LOST)
            self._guard.connection_in_doubt = self._guard.schema_in_doubt = self.was_lost = True
        if self._guard.connection_in_doubt:
            await self.disconnect()
        else:
            await outermost.rollback()

    def _was_ended(self) -> bool:
        """Return whether the transaction has ended without SQLAlchemy noticing."""
        driver_connection = self._dbapi_connection.driver_connection
        if self.engine.dialect.name == "sqlite":
            return not driver_connection.in_transaction
        return not driver_connection.is_in_transaction()

    async def connect(self) -> AsyncConnection:
        """Return the connection; open it first if necessary."""
        if self._connection is None:
            self._connection = await self.db_engine.connect()
            raw_connection = await self._connection.get_raw_connection()
            self._dbapi_connection = raw_connection.dbapi_connection
        return self._connection

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._connection is not None

    async def disconnect(self) -> None:
        """Close the connection, so that the next test gets a new one."""
        if self._connection is not None:
            await self.engine.dispose()
            await self._connection.invalidate()
            await self._connection.close()
        self._connection, self._lost = None, False

    def open_transactions(self, others: set[asyncio.Task[Any]]) -> list[Connection]:
        """Return the open transactions, except those of `others`."""
        return [each for each, task in self._open.items() if each and task not in others]

    @property
    def is_held_by_test(self) -> bool:
        """Whether the current task, or a fixture, has uncommitted writes."""
        tasks = {asyncio.current_task(), self._task_of_fixtures}
        return self._holder_has_written and self._open.get(self._holder) in tasks

    # ---- For the engine: its creator and event listeners, in SQLAlchemy's greenlets ----

    def _share(self) -> Any:
        """Return the connection of the running test; background work waits for the next test."""
        if self._connection is None:
            self._await(self._running.wait())  # the old connection is closed
        return self._dbapi_connection

    def _begin(self, connection: Connection) -> None:
        self._open[connection] = asyncio.current_task()

    def _commit(self, connection: Connection) -> None:
        self._end(connection, undo=False)

    def _roll_back(self, connection: Connection) -> None:
        self._end(connection, undo=True)

    def _end(self, connection: Connection, *, undo: bool) -> None:
        """Release the savepoint of `connection`, if it has one."""
        self._open.pop(connection, None)
        self._await(self._statement.acquire())
        self._cancelled = None
        try:
            if self._holder is connection and not self._lost:
                if undo:
                    self._operate("ROLLBACK TO SAVEPOINT of_a_session")
                    self._holder_has_set = False
                self._release()
                self._raise_cancelled()
        finally:
            self._statement.release()

    def _run(self, operation: str, cursor: DBAPICursor, statement: str, *others: Any) -> bool:
        """Run an operation of the dialect in the savepoint; return True, which means done."""
        context: ExecutionContext = others[-1]
        effect = effect_of(statement)
        if effect.begins_transaction:
            return True
        if effect.ends_transaction:
            self._guard.refuse(ENDED_BY_HAND)
        connection = context.root_connection
        self._await(self._take_turn(connection))
        try:
            if self._holder is not connection:
                self._take_savepoint(connection)
            self._holder_has_written |= effect.has_to_be_undone
            self._holder_has_set |= effect.changes_settings
            self._raise_cancelled()
            getattr(context.dialect, operation)(cursor, statement, *others)
        finally:
            self._statement.release()
        return True

    async def _take_turn(self, connection: Connection) -> None:
        """Wait until `connection` may execute a statement, and make all others wait."""
        await self._running.wait()  # background work, between two tests
        await self._statement.acquire()
        while self._holder is not connection and self._holder_has_written and not self._lost:
            self._statement.release()
            await self._wait_for_holder()
            await self._statement.acquire()
        if self._lost:
            self._statement.release()
            self._guard.refuse(LOST)
        self._cancelled = None
        if connection in self._open:
            self._open[connection] = asyncio.current_task()

    async def _wait_for_holder(self) -> None:
        """Wait for the transaction that has written. Raises IsolationError after PATIENCE."""
        is_own = self._open.get(self._holder) is asyncio.current_task()  # and would never end
        if is_own or not await wait_patiently(self._ended.wait, PATIENCE):
            self._guard.refuse(OVERLAP)

    def _take_savepoint(self, connection: Connection) -> None:
        if self._holder is not None:
            self._release()
        self._operate("SAVEPOINT of_a_session")
        self._holder = connection

    def _release(self) -> None:
        self._operate("RELEASE SAVEPOINT of_a_session")
        if self._holder_has_set:  # a transaction's end resets it, but not a savepoint's
            self._operate("RESET ALL")
            self._operate("RESET ROLE")
        self._forget_holder()

    def _forget_holder(self) -> None:
        self._holder, self._holder_has_written, self._holder_has_set = None, False, False
        self._ended.set()
        self._ended = asyncio.Event()

    def _operate(self, statement: str) -> None:
        """Execute a statement of the harness. If it fails, the connection is lost."""

        def execute() -> None:
            cursor = self._dbapi_connection.cursor()
            cursor.execute(statement, ())
            cursor.close()

        try:
            self._run_unbroken(execute)
        except Exception:  # noqa: BLE001 (whatever the driver raises)
            self._lost = True
            self._guard.refuse(LOST)

    def _run_unbroken(self, execute: Callable[[], None]) -> None:
        """Execute a statement of the harness completely; note a cancellation, to raise it later."""
        connection = self._connection
        assert connection is not None

        async def run() -> None:
            task = asyncio.create_task(connection.run_sync(lambda _: execute()))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                self._cancelled = error
                with CancelScope(shield=True):
                    while not task.done():
                        with suppress(asyncio.CancelledError):
                            await asyncio.wait({task})
            if task.exception() is not None:
                self._cancelled = None  # the error of the statement itself is reported
            task.result()

        self._await(run())

    def _raise_cancelled(self) -> None:
        """Raise a cancellation that arrived while a statement was running."""
        error, self._cancelled = self._cancelled, None
        if error is not None:
            raise error

    def _handle_error(self, context: ExceptionContext) -> None:
        """Note that a transaction must be rolled back, or the connection is lost."""
        if not isinstance(context.original_exception, Exception):
            context.is_disconnect = False  # cancelled, which leaves the connection usable
        self._lost = self._lost or context.is_disconnect
        if context.connection is self._holder and context.connection in self._open:
            self._holder_has_written = True

    def _await(self, awaitable: Awaitable[object]) -> None:
        """Await something in a sync callback of SQLAlchemy."""
        self._dbapi_connection.run_async(lambda _: awaitable)


def url_of_shared_dialect(url: URL) -> URL:
    """Return `url` with a dialect for connections that somebody else owns.

    The owner sets them up, commits, rolls back and closes them. The dialect refuses options that
    must be set before a transaction begins. How to register a dialect:
    https://docs.sqlalchemy.org/en/21/core/connections.html#registering-new-dialects
    """

    def do_nothing(*_: object) -> None:
        return

    def refuse(*_: object) -> NoReturn:
        guard.refuse(ISOLATION_LEVEL)

    overridden: dict[str, Any] = dict.fromkeys(
        ("on_connect", "do_commit", "do_rollback", "do_close", "do_terminate"), do_nothing
    )
    overridden |= dict.fromkeys(("set_isolation_level", "set_readonly", "set_deferrable"), refuse)
    overridden["supports_statement_cache"] = True
    globals()["SharedDialect"] = type("SharedDialect", (url.get_dialect(),), overridden)
    registry.register(f"{url.get_backend_name()}.shared", __name__, "SharedDialect")
    return url.set(drivername=f"{url.get_backend_name()}+shared")
