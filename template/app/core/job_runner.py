"""Runs the jobs of the service: in a worker on PostgreSQL, in the process itself on SQLite."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from opentelemetry import propagate, trace
from pgqueuer import PgQueuer
from pgqueuer.adapters.inmemory import InMemoryQueries
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job as Row
from pgqueuer.domain.models import Schedule, TracebackRecord
from pgqueuer.domain.types import (
    JOB_STATUS,
    JobId,
    OnFailure,
    QueueEntrypoint,
    QueueManagerId,
)
from pgqueuer.ports import RepositoryPort
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.contextvars import bound_contextvars

from app.core.job_driver import EngineDriver
from app.core.job_tables import NAMES
from app.core.jobs import AnyJob, JobContext, Jobs, builders

HOUSEKEEPING = "app.core.housekeeping"
OFTEN = "*/10 * * * *"
"""When the log of jobs is cleaned. A schedule of a worker that died is also looked for then."""
LOSSES = 3
"""How many workers a job may take with it, before it has failed for good."""

logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)


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
            self.lost |= {JobId(int(str(each["job_id"]))): int(str(each["lost"])) for each in found}
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


class Runner:
    """Runs jobs until it is told to stop."""

    def __init__(self, app: FastAPI, state: Mapping[str, Any], queries: RepositoryPort) -> None:
        self._app = app
        self._state = state
        self._queries = queries
        self._settings = app.state.settings
        self._running: set[asyncio.Task[None]] = set()
        self._gives_back = False
        self._engine = PgQueuer(queries.driver, NAMES.channel, queries=queries)
        jobs: Jobs = app.state.jobs
        for job in (jobs.known or {}).values():
            self._register(job)
        self._engine.schedule(HOUSEKEEPING, OFTEN)(self.clean)

    def _register(self, job: AnyJob) -> None:
        on_failure: OnFailure = "hold" if isinstance(self._queries, Queries) else "delete"

        async def enqueue(_: Schedule) -> None:
            await self._queries.enqueue(
                job.name, b"{}", dedupe_key=f"schedule of {job.name}", on_conflict="skip"
            )

        async def run(row: Row) -> None:
            await self.execute(job, row)

        self._engine.entrypoint(job.name, on_failure=on_failure)(run)
        if job.schedule is not None:
            self._engine.schedule(job.name, job.schedule)(enqueue)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set; then finish those that run, or give them back in time."""
        timeout = timedelta(seconds=self._settings.jobs_heartbeat_timeout)
        batch = max(self._settings.jobs_concurrency // 2, 1)
        running = asyncio.create_task(
            self._engine.run(
                dequeue_timeout=timeout / 2,
                batch_size=batch,
                max_concurrent_tasks=2 * batch,
                heartbeat_timeout=timeout,
                log_aggregation_interval=timedelta(0),
            )
        )
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        self._engine.shutdown.set()
        self._queries.driver.shutdown.set()
        await asyncio.wait({running}, timeout=self._app.state.stopping.seconds_left)
        self._gives_back = True
        for task in self._running:
            task.cancel()
        await running

    async def execute(self, job: AnyJob, row: Row) -> None:
        """Run a job. Raises RetryRequested when it is to be run again, or what it raised last."""
        with (
            bound_contextvars(job=job.name, job_id=row.id),
            tracer.start_as_current_span(
                f"process {job.name}",
                propagate.extract(row.headers or {}),
                trace.SpanKind.CONSUMER,
                record_exception=False,
                set_status_on_exception=False,
            ) as span,
        ):
            try:
                await self._attempt(job, row)
            except Exception as error:
                if not isinstance(error, RetryRequested):
                    span.set_status(trace.StatusCode.ERROR)
                raise

    async def _attempt(self, job: AnyJob, row: Row) -> None:
        attempt = row.attempts + 1
        if (lost := self._lost(row)) >= LOSSES:
            raise WorkerLostError(f"{lost} workers died while they ran it")
        context = JobContext(self._app.state.session_factory, self._settings, self._state, attempt)
        task = asyncio.create_task(job(context, **job.load(row.payload)))
        self._running.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self._gives_back:
                raise
            raise RetryRequested(timedelta(0), "the worker stops") from None
        except Exception as error:
            if attempt >= job.attempts:
                raise
            delay = job.delay_after(attempt)
            logger.warning(
                "Attempt %d of %d failed, the next one follows in %d s",
                attempt, job.attempts, delay.total_seconds(), exc_info=error,
            )  # fmt: skip
            raise RetryRequested(delay, str(error)) from error
        finally:
            self._running.discard(task)

    def _lost(self, row: Row) -> int:
        return self._queries.lost.pop(row.id, 0) if isinstance(self._queries, JobQueries) else 0

    async def clean(self, _: Schedule | None = None) -> None:
        """Delete what the queue has logged long ago."""
        if isinstance(self._queries, InMemoryQueries):
            await self._queries.clear_queue_log()
            await self._queries.clear_statistics_log()
            return
        kept = timedelta(days=self._settings.jobs_log_days)
        for statement in CLEAN:
            await self._queries.driver.execute(statement, kept)


@asynccontextmanager
async def database_queue(engine: AsyncEngine) -> AsyncIterator[JobQueries]:
    """Yield the queue on PostgreSQL, with a connection that tells of new jobs."""
    driver = EngineDriver(engine)
    queries = JobQueries(driver, **builders())
    try:
        yield queries
    finally:
        await driver.aclose()


@asynccontextmanager
async def run_here(app: FastAPI, state: Mapping[str, Any]) -> AsyncIterator[None]:
    """Run the jobs of an application in its own process, from memory.

    When it stops, it still runs those that are due, as far as the time for requests suffices.
    """
    jobs: Jobs = app.state.jobs
    stop = asyncio.Event()
    running = asyncio.create_task(Runner(app, state, jobs.queue).run_until(stop))
    try:
        yield
    finally:
        names = [QueueEntrypoint(name) for name in jobs.known or {}]
        while await jobs.queue.eligible_queued_work(names) and app.state.stopping.seconds_left:
            await asyncio.sleep(0.05)
        stop.set()
        await running
        if lost := len(await jobs.queue.browse_queue(statuses=["queued"])):
            logger.warning("%d jobs are lost: on SQLite, they are in memory", lost)
