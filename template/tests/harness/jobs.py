"""Inspect and run the jobs that a test has written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pgqueuer.adapters.inmemory import InMemoryQueries
from pgqueuer.domain.models import Job as Row
from pgqueuer.queries import Queries

from app.core.job_driver import ConnectionDriver
from app.core.jobs import AnyJob, Job, JobContext, builders
from tests.harness.application import RunningApp
from tests.harness.isolation import Isolation

MOST = 1000
"""How many jobs are read at once."""


class JobQueue:
    """The job queue, in the test's transaction. Only the test runs jobs."""

    def __init__(self, app: RunningApp, isolation: Isolation) -> None:
        self._app = app
        self._isolation = isolation

    async def written(self, job: Job[...]) -> list[dict[str, Any]]:
        """Return the arguments of each waiting `job`, in the order in which they were written.

        Only committed transactions have written their jobs.
        """
        return [
            job.load(row.payload) for row in await self._waiting() if row.entrypoint == job.name
        ]

    async def run(self) -> None:
        """Run all waiting jobs, even delayed ones, and the jobs that they write.

        Raises what a job raises; that job waits again.
        """
        while rows := await self._waiting():
            for row in rows:
                await self._run(row)

    async def _waiting(self) -> list[Row]:
        async with self._queue() as queue:
            rows = await queue.browse_queue(MOST, statuses=["queued"])
        return sorted(rows, key=lambda row: row.id)

    async def _run(self, row: Row) -> None:
        self._isolation.check_session()
        state = self._app.app.state
        job: AnyJob = state.jobs.known[row.entrypoint]
        context = JobContext(
            state.session_factory, state.settings, dict(self._app.lifespan_state), row.attempts + 1
        )
        async with self._isolation.request():
            # In its own task, as in a worker, so that context variables do not leak.
            await asyncio.create_task(job(context, **job.load(row.payload)))
        async with self._queue() as queue:
            await queue.log_jobs([(row, "successful", None)])

    @asynccontextmanager
    async def _queue(self) -> AsyncIterator[Queries | InMemoryQueries]:
        """Yield the queue in its own transaction."""
        if self._isolation.jobs.queue is not None:
            yield self._isolation.jobs.queue
            return
        async with self._isolation.engine.begin() as connection:
            yield Queries(ConnectionDriver(connection), **builders())
