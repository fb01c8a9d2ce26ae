"""The worker, which runs the jobs of the service on PostgreSQL, and commands for failed jobs.

python -m app.core.worker            run jobs until SIGTERM
python -m app.core.worker failed     list the jobs that have failed for good
python -m app.core.worker retry 3 4  run these jobs again
python -m app.core.worker retry all  run all of them again
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fastapi import FastAPI
from pgqueuer.domain.types import JobId
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.job_queue import JobQueries, Worker, database_queue
from app.core.job_tables import NAMES
from app.core.stopping import when_told_to_stop

MOST = 1000
"""How many failed jobs a command lists, or runs again, at once."""
BEAT = 5.0
"""Seconds between two updates of the health file."""
NO_TABLES = """\
The database has no tables for jobs. Run the migrations: alembic upgrade head. If none creates these
tables, write one that does, with `alembic revision -m "Add the tables of jobs"`:

    from app.core.job_tables import create_job_tables, drop_job_tables

    def upgrade() -> None:
        create_job_tables()

    def downgrade() -> None:
        drop_job_tables()\
"""

logger = logging.getLogger("app.core.worker")  # also where the module is `__main__`


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Raises SystemExit."""
    parser = argparse.ArgumentParser(prog="python -m app.core.worker", description="Run jobs.")
    commands = parser.add_subparsers(dest="command", metavar="{failed,retry}")
    commands.add_parser("failed", help="list the jobs that have failed for good")
    retry = commands.add_parser("retry", help="run jobs again that have failed for good")
    retry.add_argument("ids", nargs="+", metavar="id", help='the number of a job, or "all"')
    parsed = parser.parse_args(arguments)
    from app.main import create_app

    app = create_app()
    if engine_of(app).dialect.name != "postgresql":
        sys.exit("On SQLite, the service itself runs its jobs, and keeps no list of them.")
    if parsed.command == "failed":
        asyncio.run(list_failed(app))
    elif parsed.command == "retry":
        asyncio.run(retry_failed(app, parsed.ids))
    else:
        asyncio.run(work(app))


def engine_of(app: FastAPI) -> AsyncEngine:
    """Return the engine of an application."""
    engine: AsyncEngine = app.state.session_factory().bind
    return engine


async def work(app: FastAPI) -> None:
    """Run jobs until SIGTERM or Ctrl-C; then finish running jobs, or put them back in the queue."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ignore)  # when_told_to_stop handles it, as under a server
    with when_told_to_stop(stop.set):
        async with (
            app.router.lifespan_context(app) as state,
            database_queue(engine_of(app), app.state.notifications.engine) as queue,
            alive(app),
        ):
            if not await queue.has_table(NAMES.queue_table):
                sys.exit(NO_TABLES)
            logger.info("The worker is ready", extra={"jobs": sorted(app.state.jobs.known)})
            await Worker(app, dict(state or {}), queue).run_until(stop)
    logger.info("The worker has stopped")


def ignore(*_: object) -> None:
    """Do not stop the process."""


@asynccontextmanager
async def alive(app: FastAPI) -> AsyncIterator[None]:
    """Keep touching the health file, if the settings name one, while the event loop runs."""
    file: Path | None = app.state.settings.jobs_health_file

    async def beat() -> None:
        while file is not None:
            await anyio.Path(file).touch()
            await asyncio.sleep(BEAT)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


async def list_failed(app: FastAPI) -> None:
    """Print the jobs that have failed for good."""
    async with commanding(app) as queue:
        for row in await queue.list_failed_jobs(MOST, "ASC"):
            history = await queue.job_log_history(row.id)
            errors = [
                f"{entry.traceback.exception_type}: {entry.traceback.exception_message}"
                for entry in history
                if entry.traceback is not None
            ]
            job = f"{row.entrypoint} {(row.payload or b'').decode()}"
            sys.stdout.write("  ".join([str(row.id), f"{row.created:%F %T}", job, *errors[-1:]]))
            sys.stdout.write("\n")


async def retry_failed(app: FastAPI, ids: Sequence[str]) -> None:
    """Run jobs again that have failed for good."""
    async with commanding(app) as queue:
        failed = {str(row.id) for row in await queue.list_failed_jobs(MOST, "ASC")}
        wanted = failed if "all" in ids else failed.intersection(ids)
        if wanted:
            await queue.requeue_jobs([JobId(int(each)) for each in wanted])
        sys.stdout.write(f"{len(wanted)} of {len(failed)} failed jobs will be run again.\n")


@asynccontextmanager
async def commanding(app: FastAPI) -> AsyncIterator[JobQueries]:
    """Yield the queue, for a command."""
    engine = engine_of(app)
    async with database_queue(engine) as queue:
        try:
            yield queue
        finally:
            await engine.dispose()


if __name__ == "__main__":
    main()
