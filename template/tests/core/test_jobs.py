"""Jobs are written in the transaction that they belong to, and run at least once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from io import StringIO
from typing import Any, ParamSpec
from unittest.mock import AsyncMock, Mock, patch

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fastapi import FastAPI
from pgqueuer.core.executors import ScheduleExecutor
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.queries import Queries
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.application import build_app
from app.core.job_runner import Runner, run_here
from app.core.job_tables import TABLES, create_job_tables, drop_job_tables, is_of_jobs
from app.core.jobs import AnyJob, Job, JobContext, Jobs, collect, job, local_queue
from app.settings import Settings
from tests.harness.databases import Databases

NOW = timedelta(0)
P = ParamSpec("P")


@job()
async def note(context: JobContext, value: str) -> None:
    context.state["ran"].put_nowait(value)


@job(delay=NOW)
async def note_later(context: JobContext, value: str) -> None:
    if context.attempt == 1:
        raise ZeroDivisionError
    await note(context, value)


@job(attempts=2, delay=NOW)
async def fail(context: JobContext) -> None:
    await note(context, f"attempt {context.attempt}")
    raise ZeroDivisionError("this is why")


@job()
async def take_long(context: JobContext) -> None:
    await note(context, "began")
    await context.state["may_end"].wait()
    await note(context, "ended")


JOBS: list[AnyJob] = [note, note_later, fail, take_long]


@dataclass
class Service:
    """An application with jobs and its own database, and what its jobs have noted."""

    app: FastAPI
    work: Callable[["Service"], AbstractAsyncContextManager[None]]
    state: dict[str, Any] = field(
        default_factory=lambda: {"ran": asyncio.Queue(), "may_end": asyncio.Event()}
    )

    @property
    def engine(self) -> AsyncEngine:
        engine: AsyncEngine = self.session().bind  # type: ignore[assignment]
        return engine

    def session(self) -> AsyncSession:
        session: AsyncSession = self.app.state.session_factory()
        return session

    async def enqueue(self, job: Job[P], *args: P.args, **kwargs: P.kwargs) -> None:
        async with self.session() as session:
            await job.enqueue(session, *args, **kwargs)
            await session.commit()

    async def next(self) -> str:
        """Wait for what a job notes next."""
        noted: str = await self.state["ran"].get()
        return noted

    def working(self) -> AbstractAsyncContextManager[None]:
        """Run jobs."""
        return self.work(self)


def work_in_memory(service: Service) -> AbstractAsyncContextManager[None]:
    return run_here(service.app, service.state, service.app.state.jobs.queue)


@asynccontextmanager
async def nothing(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {}


@asynccontextmanager
async def service_on(
    databases: Databases,
    settings: Settings,
    work: Callable[[Service], AbstractAsyncContextManager[None]],
) -> AsyncIterator[Service]:
    """Yield a service with jobs."""
    async with databases.copy() as engine:
        url = engine.url.render_as_string(hide_password=False)
        own = settings.model_copy(update={"database_url": url, "jobs_heartbeat_timeout": 1.0})
        service = Service(build_app(own, nothing, jobs=JOBS), work)
        yield service
        await service.engine.dispose()


@pytest.fixture
async def service(databases: Databases, settings: Settings) -> AsyncIterator[Service]:
    """A service whose jobs are in memory, as on SQLite, on any database."""
    async with service_on(databases, settings, work_in_memory) as service:
        keep_in_memory(service.app)
        yield service


def keep_in_memory(app: FastAPI) -> None:
    """Let an application keep its jobs in memory."""
    app.state.jobs = Jobs(app.state.jobs.known, local_queue())
    app.state.session_factory.configure(info=app.state.jobs.info)


# ---- Writing ----


async def test_job_runs_after_the_commit(service: Service) -> None:
    async with service.working(), service.session() as session:
        await note.enqueue(session, "a")
        assert service.state["ran"].empty()
        await session.commit()
        assert await service.next() == "a"


async def test_job_of_a_transaction_that_is_rolled_back_never_runs(service: Service) -> None:
    async with service.working():
        async with service.session() as session:
            await note.enqueue(session, "rolled back")
            await session.rollback()
            await note.enqueue(session, "closed without a commit")
        await service.enqueue(note, "committed")
        assert await service.next() == "committed"
    assert service.state["ran"].empty()


async def test_job_of_a_savepoint_that_is_rolled_back_never_runs(service: Service) -> None:
    async with service.working(), service.session() as session:
        await note.enqueue(session, "before")
        async with session.begin_nested():
            await note.enqueue(session, "kept")
        with suppress(ZeroDivisionError):
            async with session.begin_nested():
                async with session.begin_nested():
                    await note.enqueue(session, "dropped")
                raise ZeroDivisionError
        await note.enqueue(session, "after")
        await session.commit()
        assert {await service.next() for _ in range(3)} == {"before", "kept", "after"}
    assert service.state["ran"].empty()


async def test_session_can_be_used_again(service: Service) -> None:
    async with service.working(), service.session() as session:
        for value in ("a", "b"):
            await note.enqueue(session, value)
            await session.commit()
        assert {await service.next(), await service.next()} == {"a", "b"}
    assert service.state["ran"].empty()


async def test_delayed_job_waits(service: Service) -> None:
    async with service.working():
        async with service.session() as session:
            await note.enqueue_in(timedelta(hours=1), session, "in an hour")
            await note.enqueue_in(timedelta(milliseconds=1), session, "soon")
            await session.commit()
        assert await service.next() == "soon"
    assert service.state["ran"].empty()


async def test_arguments_are_stored_as_json() -> None:
    @job()
    async def remind(context: JobContext, day: date, to: list[str], times: int = 3) -> None: ...

    stored = remind.dump(date(2026, 1, 31), to=["ada"])
    assert stored == b'{"day":"2026-01-31","to":["ada"],"times":3}'
    assert remind.load(stored) == {"day": date(2026, 1, 31), "to": ["ada"], "times": 3}
    with pytest.raises(ValidationError):
        remind.dump(date(2026, 1, 31), to=["ada"], times="often")  # type: ignore[arg-type]


async def test_job_can_be_called_as_a_function(service: Service) -> None:
    context = JobContext(
        service.app.state.session_factory, service.app.state.settings, service.state
    )
    await note(context, "called")
    assert await service.next() == "called"


async def test_job_that_the_application_does_not_know_is_refused(service: Service) -> None:
    @job()
    async def forgotten(context: JobContext) -> None: ...

    async with service.session() as session:
        with pytest.raises(LookupError, match=r"forgotten.*app/main.py"):
            await forgotten.enqueue(session)


async def test_session_that_knows_no_queue_is_refused_on_sqlite(service: Service) -> None:
    async with AsyncSession(service.engine) as session:
        with (
            patch.object(service.engine.sync_engine.dialect, "name", "sqlite"),
            pytest.raises(LookupError, match="session factory"),
        ):
            await note.enqueue(session, "a")


def test_two_jobs_have_two_names() -> None:
    @job(name="note")
    async def another(context: JobContext) -> None: ...

    assert collect([note, note]) == {"note": note}
    with pytest.raises(ValueError, match="Two jobs are named note"):
        collect([note, another])


def test_schedule_is_checked() -> None:
    with pytest.raises(ValueError, match="value needs a default"):
        job(schedule="0 3 * * *")(note.function)
    with pytest.raises(ValueError, match="every night"):
        collect([job(schedule="every night")(fail.function)])


def test_attempts_are_ever_further_apart() -> None:
    delays = [note.delay_after(attempt).total_seconds() for attempt in (1, 2, 3, 10, 1000)]
    assert delays == [5, 10, 20, 2560, 3600]


# ---- Running ----


async def test_job_that_fails_is_run_again(service: Service) -> None:
    async with service.working():
        await service.enqueue(note_later, "second attempt")
        assert await service.next() == "second attempt"


async def test_job_ends_after_its_last_attempt(service: Service) -> None:
    async with service.working():
        await service.enqueue(fail)
        assert [await service.next(), await service.next()] == ["attempt 1", "attempt 2"]
        await service.enqueue(note, "another")
        assert await service.next() == "another"
    assert service.state["ran"].empty()


async def test_scheduled_job_runs_by_itself(service: Service) -> None:
    @job(name="tick", schedule="0 4 * * *")
    async def tick(context: JobContext) -> None:
        await note(context, "tick")

    service.app.state.jobs.known[tick.name] = tick
    with patch.object(ScheduleExecutor, "next_in", return_value=NOW):  # it is four o'clock
        async with service.working():
            assert await service.next() == "tick"


async def test_what_the_queue_has_logged_is_forgotten(service: Service) -> None:
    queue = service.app.state.jobs.queue
    async with service.working():
        await service.enqueue(note, "a")
        await service.next()
    assert await queue.queue_log() != []
    await Runner(service.app, {}, queue).clean()
    assert await queue.queue_log() == []


# ---- Stopping ----


async def test_running_job_is_finished_when_the_service_stops(service: Service) -> None:
    async with service.working():
        await service.enqueue(take_long)
        assert await service.next() == "began"
        asyncio.get_running_loop().call_soon(service.state["may_end"].set)
    assert await service.next() == "ended"


async def test_job_that_takes_too_long_is_lost_with_a_warning(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.working():
        await service.enqueue(take_long)
        assert await service.next() == "began"
        service.app.state.stopping.timeout = 0
    assert "1 jobs are lost" in caplog.text


async def test_job_that_is_cancelled_by_others_is_not_given_back(service: Service) -> None:
    runner = Runner(service.app, service.state, service.app.state.jobs.queue)
    row = Mock(id=1, payload=b"{}", attempts=0, headers=None)
    running = asyncio.create_task(runner.execute(take_long, row))
    assert await service.next() == "began"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_job_that_comes_after_the_end_is_given_back(service: Service) -> None:
    runner = Runner(service.app, service.state, service.app.state.jobs.queue)
    stop = asyncio.Event()
    stop.set()
    await runner.run_until(stop)
    with pytest.raises(RetryRequested):
        await runner.execute(note, Mock(id=1, payload=b"{}", attempts=0, headers=None))
    assert service.state["ran"].empty()


async def test_jobs_in_memory_are_run_before_the_process_ends(service: Service) -> None:
    for number in range(20):
        await service.enqueue(note, str(number))
    async with service.working():
        pass
    assert service.state["ran"].qsize() == 20


async def test_time_that_is_left_ends(service: Service) -> None:
    stopping = service.app.state.stopping
    assert stopping.seconds_left == stopping.timeout
    stopping.begin()
    assert stopping.seconds_left <= stopping.timeout
    stopping.timeout = -1.0
    assert stopping.seconds_left == 0


@pytest.mark.parametrize(("environment", "runs"), [("test", False), ("development", True)])
async def test_application_runs_jobs_in_memory_itself_but_not_in_tests(
    service: Service, environment: str, runs: bool
) -> None:
    ran: list[str] = []

    @job()
    async def run(context: JobContext) -> None:
        ran.append(context.state["greeting"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"greeting": "hello"}

    own = service.app.state.settings.model_copy(update={"environment": environment})
    app = build_app(own, lifespan, jobs=[run])
    keep_in_memory(app)
    async with app.router.lifespan_context(app), app.state.session_factory() as session:
        await run.enqueue(session)
        await session.commit()
    assert ran == (["hello"] if runs else [])


# ---- On PostgreSQL, without a server ----


async def test_job_is_a_row_that_is_written_on_the_connection_of_the_session(
    service: Service,
) -> None:
    async with AsyncSession(service.engine) as session:
        with (
            patch.object(service.engine.sync_engine.dialect, "name", "postgresql"),
            patch.object(Queries, "enqueue", autospec=True) as enqueue,
        ):
            await note.enqueue(session, "a")
        driver = enqueue.call_args.args[0].driver
        async with driver:
            await driver.add_listener("nobody", print)
            assert await driver.fetch("SELECT 1 AS one") == [{"one": 1}]
            assert await driver.execute("CREATE TEMPORARY TABLE scraps (id INTEGER)") == ""
            assert not driver.shutdown.is_set()
            assert driver.tm.tasks == set()
            with patch.object(driver, "fetch", AsyncMock()) as fetch:
                await driver.notify("channel", "payload")
            fetch.assert_awaited_once_with("SELECT pg_notify($1, $2)", "channel", "payload")


@pytest.mark.parametrize(("dialect", "tables"), [("postgresql", 4), ("sqlite", 0)])
def test_migration_creates_and_drops_the_tables(dialect: str, tables: int) -> None:
    written = StringIO()
    options = {"as_sql": True, "output_buffer": written}
    context = MigrationContext.configure(dialect_name=dialect, opts=options)
    with Operations.context(context):
        create_job_tables()
        drop_job_tables()
    assert written.getvalue().count("CREATE TABLE") == tables
    assert written.getvalue().count("DROP TABLE") == tables


def test_tables_of_jobs_are_told_apart() -> None:
    assert [is_of_jobs(name) for name in (*TABLES, "pgqueuer_status", "users", None)] == [
        *[True] * 5,
        *[False] * 2,
    ]
