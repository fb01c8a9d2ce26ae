"""Wake up code that waits for a change in the database, in every process of the service."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
from sqlalchemy import Connection, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from app.core.unavailable import reason

CHANNEL = "app_notifications"
HEARTBEAT = 10.0
"""How often, in seconds, the connection is tested, and how long the server may take to respond."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds between two attempts to connect."""

logger = logging.getLogger(__name__)


class WakeUp:
    """What a subscriber waits for. It remembers a wake-up that comes before the wait."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake up the subscriber."""
        self._event.set()

    async def wait(self) -> None:
        """Wait for the next wake-up since the last call."""
        await self._event.wait()
        self._event = anyio.Event()


class Notifications:
    """Wakes up the subscribers of a topic when a transaction that concerns them is committed.

    It wakes subscribers in this process on every database. On PostgreSQL with asyncpg, it also
    wakes those in other processes, by LISTEN and NOTIFY. For this, a process has one connection,
    however many subscribers it has, and none without subscribers.

    A wake-up only means "look at the database". One may come without a change, and all subscribers
    get one each time the connection is made, because they may have missed some.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        """The engine of the connection that listens."""
        self._topics: dict[str, set[WakeUp]] = {}
        self._needed = asyncio.Event()  # while there are subscribers
        self._doubtful = asyncio.Event()  # the connection is lost, or no longer needed
        self._delay = FIRST_DELAY

    async def notify(self, session: AsyncSession, topic: str) -> None:
        """Wake up the subscribers of `topic` when the transaction of `session` is committed.

        PostgreSQL allows 8,000 bytes: a topic says whom a change concerns, not what has changed.
        """
        if session.get_bind().dialect.name == "postgresql":
            await session.execute(select(func.pg_notify(CHANNEL, topic)))
        session.info.setdefault(PENDING, set()).add((self, topic))

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[WakeUp]:
        """Yield a WakeUp that is set by each notification of `topic` from now on."""
        subscriber = WakeUp()
        self._topics.setdefault(topic, set()).add(subscriber)
        self._needed.set()
        try:
            yield subscriber
        finally:
            self._topics[topic].remove(subscriber)
            if not self._topics[topic]:
                del self._topics[topic]
            if not self._topics:
                self._needed.clear()
                self._doubtful.set()

    def wake(self, topic: str) -> None:
        """Wake up the subscribers of `topic` in this process."""
        for subscriber in self._topics.get(topic, ()):
            subscriber.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen to other processes until the context ends."""
        task = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.engine.dispose()

    async def _listen(self) -> None:
        """Listen while there are subscribers. When the connection is lost, connect again."""
        while self.engine.driver == "asyncpg":
            await self._needed.wait()
            try:
                async with open_driver_connection(self.engine) as connection:
                    await self._listen_on(connection)
            except Exception as error:  # noqa: BLE001 (whatever the driver raises)
                logger.warning("Notifications of other processes are late: %s", reason(error))
                await asyncio.sleep(self._delay)
                self._delay = min(2 * self._delay, LONGEST_DELAY)

    async def _listen_on(self, connection: Any) -> None:
        """Listen while there are subscribers. Raises the driver's error if that fails."""
        self._doubtful.clear()
        connection.add_termination_listener(lambda *_: self._doubtful.set())
        await connection.add_listener(CHANNEL, lambda *arguments: self.wake(arguments[-1]))
        self._delay = FIRST_DELAY
        for topic in self._topics:
            self.wake(topic)
        while self._topics:
            await connection.execute("SELECT 1", timeout=HEARTBEAT)
            with anyio.move_on_after(HEARTBEAT):
                await self._doubtful.wait()
            self._doubtful.clear()


PENDING = object()
"""The key in a session's `info` of the topics to wake when its transaction ends."""


@event.listens_for(Session, "after_transaction_end")
def wake_pending(session: Session, transaction: SessionTransaction) -> None:
    """Wake up the subscribers that a transaction concerns when it ends, even by a rollback."""
    if transaction.parent is None:
        for notifications, topic in session.info.pop(PENDING, ()):
            notifications.wake(topic)


@asynccontextmanager
async def open_driver_connection(engine: AsyncEngine) -> AsyncIterator[Any]:
    """Yield a driver connection that belongs to no pool; close it afterwards."""
    async with engine.connect() as connection:
        raw_connection = await connection.get_raw_connection()
        driver_connection = raw_connection.driver_connection
        await connection.run_sync(Connection.detach)
        yield driver_connection
