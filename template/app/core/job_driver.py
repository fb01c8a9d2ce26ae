"""How the queue of jobs reaches PostgreSQL: on the connections of SQLAlchemy.

So the tests see its statements, the settings of the service limit them, and a job is written in
the transaction of whoever writes it.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Self

from pgqueuer.core.tm import TaskManager
from pgqueuer.ports.driver import Driver
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.core.unavailable import DatabaseUnavailableError, reason

Listener = Callable[[str | bytes | bytearray], None]

PAUSE = 0.5
"""Seconds between two attempts to reach a database that is away."""

logger = logging.getLogger(__name__)


async def run(
    connection: AsyncConnection, query: str, args: tuple[object, ...]
) -> list[dict[str, Any]]:
    """Execute a statement of the queue; return its rows, with JSON as the queue expects it: as text."""
    result = await connection.exec_driver_sql(query, args or None)
    if not result.returns_rows:
        return []
    return [
        {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in row.items()
        }
        for row in result.mappings()
    ]


class SqlDriver(Driver):
    """What the drivers below have in common."""

    def __init__(self) -> None:
        self._shutdown = asyncio.Event()
        self._listeners: list[tuple[str, Listener]] = []

    async def execute(self, query: str, *args: object) -> str:
        """Execute a statement."""
        await self.fetch(query, *args)
        return ""

    async def notify(self, channel: str, payload: str) -> None:
        """Send a notification."""
        await self.fetch("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: Listener) -> None:
        """Call `callback` with each notification on `channel`, if the driver listens."""
        self._listeners.append((channel, callback))

    @property
    def shutdown(self) -> asyncio.Event:
        """Set when the worker stops."""
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        """Background tasks of the driver, of which there are none."""
        return TaskManager()

    async def __aenter__(self) -> Self:
        """Do nothing."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: two managers enter a driver, so `aclose` closes it."""


class ConnectionDriver(SqlDriver):
    """Runs the statements of the queue in the transaction of a connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__()
        self._connection = connection

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Return the rows of a query."""
        return await run(self._connection, query, args)


class EngineDriver(SqlDriver):
    """Runs each statement of the queue in its own transaction; waits for a database that is away.

    A restart of the database ends neither the worker nor its jobs. One connection listens for new
    jobs; when it is lost, the next one is opened.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__()
        self._engine = engine
        self._listening: asyncio.Task[None] | None = None

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Return the rows of a query. Raises DatabaseUnavailableError only when the worker stops."""
        while True:
            try:
                async with self._engine.begin() as connection:
                    return await run(connection, query, args)
            except (DatabaseUnavailableError, PoolTimeoutError) as error:
                if self._shutdown.is_set():
                    raise
                logger.warning("The queue of jobs waits for the database: %s", reason(error))
                await asyncio.sleep(PAUSE)

    async def add_listener(self, channel: str, callback: Listener) -> None:
        """Call `callback` with each notification on `channel`."""
        await super().add_listener(channel, callback)
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_until_lost()
            except (DatabaseUnavailableError, PoolTimeoutError, OSError) as error:
                logger.warning("Nobody tells of new jobs: %s", reason(error))
            await asyncio.sleep(PAUSE)

    async def _listen_until_lost(self) -> None:
        lost = asyncio.Event()
        async with self._engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            raw.add_termination_listener(lambda _: lost.set())
            for channel, callback in self._listeners:
                await raw.add_listener(channel, make_relay(callback))
            try:
                await lost.wait()
            finally:
                await connection.invalidate()  # it would go on listening in the pool

    async def aclose(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})


def make_relay(callback: Listener) -> Callable[[object, int, str, str], None]:
    """Return a listener of asyncpg that passes on the payload."""
    return lambda _connection, _pid, _channel, payload: callback(payload)
