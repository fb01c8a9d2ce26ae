"""Let the job queue use SQLAlchemy's connections to PostgreSQL.

This way, tests see its statements, the service's settings limit them, and a job is written in the
caller's transaction.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

from pgqueuer.core.tm import TaskManager
from pgqueuer.ports.driver import Driver
from sqlalchemy.ext.asyncio import AsyncConnection

Listener = Callable[[str | bytes | bytearray], None]


async def run(
    connection: AsyncConnection, query: str, args: tuple[object, ...]
) -> list[dict[str, Any]]:
    """Execute a statement of the queue; return its rows, with JSON as text, as PgQueuer expects."""
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
        """The driver's background tasks: none."""
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
