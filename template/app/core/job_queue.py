"""The queue of jobs on PostgreSQL, and the worker that empties it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from pgqueuer.domain.models import Job as Row
from pgqueuer.domain.models import Schedule, TracebackRecord
from pgqueuer.domain.types import (
    JOB_STATUS,
    JobId,
    OnFailure,
    QueueEntrypoint,
    QueueManagerId,
)
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.job_driver import Listener, SqlDriver, run
from app.core.job_runner import Runner
from app.core.jobs import builders
from app.core.notifications import open_driver_connection
from app.core.unavailable import DatabaseUnavailableError, reason

PAUSE = 0.5
"""Seconds between two attempts to reach a database that is away."""
LOSSES = 3
"""How many workers a job may take with it, before it has failed for good."""

logger = logging.getLogger(__name__)


class EngineDriver(SqlDriver):
    """Runs each statement of the queue in its own transaction; waits for a database that is away.

    A restart of the database ends neither the worker nor its jobs. One connection of
    `listening_engine` listens for new jobs; when it is lost, the next one is opened.
    """

    def __init__(self, engine: AsyncEngine, listening_engine: AsyncEngine) -> None:
        super().__init__()
        self._engine = engine
        self._listening_engine = listening_engine
        self._listening: asyncio.Task[None] | None = None

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Return the rows of a query. Raises DatabaseUnavailableError if the worker stops."""
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
        async with open_driver_connection(self._listening_engine) as connection:
            connection.add_termination_listener(lambda _: lost.set())
            for channel, callback in self._listeners:
                await connection.add_listener(channel, make_relay(callback))
            await lost.wait()

    async def aclose(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})


def make_relay(callback: Listener) -> Callable[[object, int, str, str], None]:
    """Return a listener of asyncpg that passes on the payload."""
    return lambda _connection, _pid, _channel, payload: callback(payload)


class AbandonedError(BaseException):
    """Nobody knows what became of a job: its heartbeat ends, and then another worker takes over.

    The queue handles every Exception, and would mark the job as failed for good.
    """


class WorkerLostError(Exception):
    """The workers that ran the job died, so it may be the reason."""


@dataclass
class JobQueries(Queries):
    """The queue on PostgreSQL, which loses no job that was interrupted."""

    lost: dict[JobId, int] = field(default_factory=dict)
    """How many workers have died while they ran a job, for the jobs that were taken over."""

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> list[Row]:
        """Take over jobs that wait, or whose worker has died."""
        rows = await super().dequeue(
            batch_size, entrypoints, queue_manager_id, global_concurrency_limit, heartbeat_timeout
        )
        if rows:
            ids = [row.id for row in rows]
            found = await self.driver.fetch(COUNT_LOST, ids)
            self.lost.update(
                {JobId(int(str(each["job_id"]))): int(str(each["lost"])) for each in found}
            )
        return rows

    async def log_jobs(
        self, job_status: list[tuple[Row, JOB_STATUS, TracebackRecord | None]]
    ) -> None:
        """Delete jobs that are done. Keep those that were cancelled, which nobody asks for."""
        await super().log_jobs([each for each in job_status if each[1] != "canceled"])

    async def retry_job(
        self, job: Row, delay: timedelta, traceback_record: TracebackRecord | None
    ) -> None:
        """Put a job back into the queue. Raises AbandonedError if that fails."""
        try:
            await super().retry_job(job, delay, traceback_record)
        except Exception as error:
            raise AbandonedError from error


COUNT_LOST = """
    SELECT job_id, count(*) - 1 AS lost
    FROM pgqueuer_log AS log
    WHERE job_id = ANY($1) AND status = 'picked' AND id > (
        SELECT max(id) FROM pgqueuer_log WHERE job_id = log.job_id AND status = 'queued'
    )
    GROUP BY job_id HAVING count(*) > 1
"""
CLEAN = (
    "DELETE FROM pgqueuer_log WHERE created < now() - $1::interval",
    "DELETE FROM pgqueuer_statistics WHERE created < now() - $1::interval",
)


class Worker(Runner):
    """Runs the jobs of the queue on PostgreSQL, which keeps those that have failed for good."""

    on_failure: OnFailure = "hold"

    def __init__(self, app: FastAPI, state: Mapping[str, Any], queries: JobQueries) -> None:
        super().__init__(app, state, queries)
        self._lost = queries.lost

    def check(self, row: Row) -> None:
        """Raise WorkerLostError if the job was being run when several workers died."""
        if (lost := self._lost.pop(row.id, 0)) >= LOSSES:
            raise WorkerLostError(f"{lost} workers died while they ran it")

    async def clean(self, _: Schedule | None = None) -> None:
        """Delete what the queue has logged long ago."""
        kept = timedelta(days=self.settings.jobs_log_days)
        for statement in CLEAN:
            await self.queries.driver.execute(statement, kept)


@asynccontextmanager
async def database_queue(
    engine: AsyncEngine, listening_engine: AsyncEngine | None = None
) -> AsyncIterator[JobQueries]:
    """Yield the queue on PostgreSQL; `listening_engine` is for the connection that listens."""
    driver = EngineDriver(engine, listening_engine or engine)
    queries = JobQueries(driver, **builders())
    try:
        yield queries
    finally:
        await driver.aclose()
