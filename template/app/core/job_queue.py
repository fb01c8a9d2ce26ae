"""The job queue on PostgreSQL, and the worker that runs its jobs."""

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
"""Seconds between two attempts to reach a database that is down."""
LOSSES = 3
"""How many workers may die while they run a job before it has failed for good."""

logger = logging.getLogger(__name__)


class EngineDriver(SqlDriver):
    """Runs each statement of the queue in its own transaction; waits for a database that is down.

    The worker and its jobs survive a restart of the database. One connection of
    `listening_engine` listens for new jobs; when it is lost, another one is opened.
    """

    def __init__(self, engine: AsyncEngine, listening_engine: AsyncEngine) -> None:
        super().__init__()
        self._engine = engine
        self._listening_engine = listening_engine
        self._listening: asyncio.Task[None] | None = None

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Return the rows of a query.

        Raises DatabaseUnavailableError or PoolTimeoutError if the worker stops while it waits.
        """
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
                logger.warning("Cannot listen for new jobs: %s", reason(error))
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
    """Return an asyncpg listener that passes the payload to `callback`."""
    return lambda _connection, _pid, _channel, payload: callback(payload)


class AbandonedError(BaseException):
    """A job could not be put back: its heartbeat stops, and then another worker takes it over.

    Not an Exception: the queue handles those, and would mark the job as failed for good.
    """


class WorkerLostError(Exception):
    """The workers that ran the job died, and it may be to blame."""


@dataclass
class JobQueries(Queries):
    """The queue on PostgreSQL. It does not lose a job that is interrupted."""

    lost: dict[JobId, int] = field(default_factory=dict)
    """For each job that was taken over: how many workers died while they ran it."""

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> list[Row]:
        """Take jobs that are waiting, or whose worker has died."""
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
        """Delete jobs that are done. Keep those that were cancelled: nobody asks for that."""
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
    """Runs the jobs of the queue on PostgreSQL, and keeps those that have failed for good."""

    on_failure: OnFailure = "hold"

    def __init__(self, app: FastAPI, state: Mapping[str, Any], queries: JobQueries) -> None:
        super().__init__(app, state, queries)
        self._lost = queries.lost

    def check(self, row: Row) -> None:
        """Raise WorkerLostError if LOSSES workers have died while they ran the job."""
        if (lost := self._lost.pop(row.id, 0)) >= LOSSES:
            raise WorkerLostError(f"{lost} workers died while they ran it")

    async def clean(self, _: Schedule | None = None) -> None:
        """Delete the old entries of the queue's log."""
        kept = timedelta(days=self.settings.jobs_log_days)
        for statement in CLEAN:
            await self.queries.driver.execute(statement, kept)


@asynccontextmanager
async def database_queue(
    engine: AsyncEngine, listening_engine: AsyncEngine | None = None
) -> AsyncIterator[JobQueries]:
    """Yield the queue on PostgreSQL; `listening_engine`, or else `engine`, listens for jobs."""
    driver = EngineDriver(engine, listening_engine or engine)
    queries = JobQueries(driver, **builders())
    try:
        yield queries
    finally:
        await driver.aclose()
