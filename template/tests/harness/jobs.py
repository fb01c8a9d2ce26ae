"""The jobs that a test has written: to look at, and to run."""

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
"""How many jobs are looked at."""


class JobQueue:
    """The queue of jobs, in the test's transaction. Nothing runs a job unless the test does."""

    def __init__(self, app: RunningApp, isolation: Isolation) -> None:
        self._app = app
        self._isolation = isolation

    async def written(self, job: Job[...]) -> list[dict[str, Any]]:
        """Return the arguments of each `job` that waits, in the order in which they were written.

        Only a transaction that was committed has written its jobs.
        """
        return [
            job.load(row.payload) for row in await self._waiting() if row.entrypoint == job.name
        ]

    async def run(self) -> None:
        """Run all jobs that wait, also those that are delayed, and those that they write.

        What a job raises is raised here, and the job waits again.
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
        """Yield the queue in a transaction of its own."""
        if self._isolation.jobs.queue is not None:
            yield self._isolation.jobs.queue
            return
        async with self._isolation.engine.begin() as connection:
            yield Queries(ConnectionDriver(connection), **builders())
