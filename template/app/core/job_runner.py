"""Run the jobs of the service: on SQLite in its own process, on PostgreSQL in a worker."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from opentelemetry import propagate, trace
from pgqueuer import PgQueuer
from pgqueuer.adapters.inmemory import InMemoryQueries
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job as Row
from pgqueuer.domain.models import Schedule
from pgqueuer.domain.types import OnFailure, QueueEntrypoint
from pgqueuer.ports import RepositoryPort
from structlog.contextvars import bound_contextvars

from app.core.job_tables import NAMES
from app.core.jobs import AnyJob, JobContext, Jobs

HOUSEKEEPING = "app.core.housekeeping"
OFTEN = "*/10 * * * *"
"""When the log of jobs is cleaned, and schedules of dead workers are taken over."""

STOPS = "the worker stops"
PAUSE = 0.05
"""Seconds between two checks for jobs that are left in memory."""

logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)


class Runner:
    """Runs jobs until it is told to stop."""

    on_failure: OnFailure = "delete"
    """What to do with a job that has failed for good."""

    def __init__(self, app: FastAPI, state: Mapping[str, Any], queries: RepositoryPort) -> None:
        self._app = app
        self._state = state
        self.queries = queries
        self.settings = app.state.settings
        self._running: set[asyncio.Task[None]] = set()
        self._gives_back = False
        self._engine = PgQueuer(queries.driver, NAMES.channel, queries=queries)
        jobs: Jobs = app.state.jobs
        for job in (jobs.known or {}).values():
            self._register(job)
        self._engine.schedule(HOUSEKEEPING, OFTEN)(self.clean)

    def _register(self, job: AnyJob) -> None:
        async def enqueue(_: Schedule) -> None:
            await self.queries.enqueue(
                job.name, b"{}", dedupe_key=f"schedule of {job.name}", on_conflict="skip"
            )

        async def run(row: Row) -> None:
            await self.execute(job, row)

        self._engine.entrypoint(job.name, on_failure=self.on_failure)(run)
        if job.schedule is not None:
            self._engine.schedule(job.name, job.schedule)(enqueue)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set; then finish running jobs, or put them back in the queue."""
        timeout = timedelta(seconds=self.settings.jobs_heartbeat_timeout)
        batch = max(self.settings.jobs_concurrency // 2, 1)
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
        self.queries.driver.shutdown.set()
        await asyncio.wait({running}, timeout=self._app.state.stopping.seconds_left)
        self._gives_back = True
        for task in self._running:
            task.cancel()
        await running

    async def execute(self, job: AnyJob, row: Row) -> None:
        """Run a job. Raises RetryRequested if it should run again, otherwise the job's error."""
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
        self.check(row)
        if self._gives_back:  # it was fetched as the worker was told to stop
            raise RetryRequested(timedelta(0), STOPS)
        context = JobContext(self._app.state.session_factory, self.settings, self._state, attempt)
        task = asyncio.create_task(job(context, **job.load(row.payload)))
        self._running.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self._gives_back:
                raise
            raise RetryRequested(timedelta(0), STOPS) from None
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

    def check(self, row: Row) -> None:
        """Do nothing: jobs in memory do not survive their process."""

    async def clean(self, _: Schedule | None = None) -> None:
        """Clear the queue's logs."""
        queue: Any = self.queries
        await queue.clear_queue_log()
        await queue.clear_statistics_log()


@asynccontextmanager
async def run_here(
    app: FastAPI, state: Mapping[str, Any], queue: InMemoryQueries
) -> AsyncIterator[None]:
    """Run an application's jobs in its own process, from memory.

    At shutdown, it still runs the jobs that are due, within the time that requests have.
    """
    stop = asyncio.Event()
    running = asyncio.create_task(Runner(app, state, queue).run_until(stop))
    try:
        yield
    finally:
        names = [QueueEntrypoint(name) for name in app.state.jobs.known]
        for _ in range(int(app.state.stopping.seconds_left / PAUSE)):
            if not await queue.eligible_queued_work(names):
                break
            await asyncio.sleep(PAUSE)
        stop.set()
        await running
        if lost := len(await queue.browse_queue(statuses=["queued"])):
            logger.warning("%d jobs are lost: on SQLite, they are in memory", lost)
