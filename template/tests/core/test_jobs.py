"""Jobs: written with the transaction that they belong to, and run at least once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, ParamSpec
from unittest.mock import DEFAULT, AsyncMock, call, patch

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core import job_driver, worker
from app.core.application import build_app
from app.core.job_driver import ConnectionDriver, EngineDriver
from app.core.job_runner import (
    AbandonedError,
    Runner,
    database_queue,
    run_here,
)
from app.core.job_tables import TABLES, create_job_tables, drop_job_tables
from app.core.jobs import AnyJob, Job, JobContext, collect, job
from app.core.unavailable import DatabaseUnavailableError
from app.core.worker import NO_TABLES, engine_of, list_failed, retry_failed, work
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
    """An application with jobs, on a database of its own, and what its jobs have noted."""

    app: FastAPI
    state: dict[str, Any] = field(
        default_factory=lambda: {"ran": asyncio.Queue(), "may_end": asyncio.Event()}
    )

    @property
    def engine(self) -> AsyncEngine:
        return engine_of(self.app)

    @property
    def is_on_postgresql(self) -> bool:
        return self.engine.dialect.name == "postgresql"

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

    async def sql(self, statement: str, **values: object) -> list[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run jobs: as a worker does, or in the process itself."""
        if not self.is_on_postgresql:
            async with run_here(self.app, self.state):
                yield
            return
        stop = asyncio.Event()
        async with database_queue(self.engine) as queue:
            running = asyncio.create_task(Runner(self.app, self.state, queue).run_until(stop))
            try:
                yield
            finally:
                stop.set()
                await running


@asynccontextmanager
async def nothing(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {}


def create_tables(connection: Connection) -> None:
    """Create the tables of jobs, unless a migration of the project has done so."""
    if not inspect(connection).has_table(TABLES[0]):
        with Operations.context(MigrationContext.configure(connection)):
            create_job_tables()


@pytest.fixture
async def service(databases: Databases, settings: Settings) -> AsyncIterator[Service]:
    """A service with jobs."""
    async with databases.copy() as engine:
        async with engine.begin() as connection:
            await connection.run_sync(create_tables)
        url = engine.url.render_as_string(hide_password=False)
        own = settings.model_copy(update={"database_url": url, "jobs_heartbeat_timeout": 1.0})
        service = Service(build_app(own, nothing, jobs=JOBS))
        yield service
        await service.engine.dispose()


@pytest.fixture
def on_postgresql(service: Service) -> None:
    """Skip the test on SQLite."""
    if not service.is_on_postgresql:
        pytest.skip("SQLite has no workers")


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
        if service.is_on_postgresql:
            await note.enqueue(session, "a")
        else:
            with pytest.raises(LookupError, match="session factory"):
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


async def test_job_that_has_failed_for_good_can_be_seen_and_run_again(
    service: Service, on_postgresql: None, capsys: pytest.CaptureFixture[str]
) -> None:
    async with service.working():
        await service.enqueue(fail)
        assert [await service.next(), await service.next()] == ["attempt 1", "attempt 2"]
    await list_failed(service.app)
    said = capsys.readouterr().out
    assert said.startswith("1  ")
    assert said.endswith("  fail {}  ZeroDivisionError: this is why\n")
    await retry_failed(service.app, ["7"])
    await retry_failed(service.app, ["1"])
    await retry_failed(service.app, ["all"])
    assert capsys.readouterr().out.split() == [
        *"0 of 1 failed jobs will be run again.".split(),
        *"1 of 1 failed jobs will be run again.".split(),
        *"0 of 0 failed jobs will be run again.".split(),
    ]
    async with service.working():
        assert await service.next() == "attempt 1"


async def test_job_ends_after_its_last_attempt(service: Service) -> None:
    async with service.working():
        await service.enqueue(fail)
        assert [await service.next(), await service.next()] == ["attempt 1", "attempt 2"]
        await service.enqueue(note, "another")
        assert await service.next() == "another"
    assert service.state["ran"].empty()


async def test_scheduled_job_runs_by_itself(service: Service) -> None:
    every_second = job(name="every_second", schedule="* * * * * *")
    schedules: dict[str, Any] = service.app.state.jobs.known

    @every_second
    async def tick(context: JobContext) -> None:
        await note(context, "tick")

    schedules[tick.name] = tick
    async with service.working():
        assert await service.next() == "tick"


async def test_what_the_queue_has_logged_is_deleted(service: Service) -> None:
    queue = service.app.state.jobs.queue
    async with service.working():
        await service.enqueue(note, "a")
        await service.next()
    if not service.is_on_postgresql:
        assert await queue.queue_log() != []
        await Runner(service.app, {}, queue).clean()
        assert await queue.queue_log() == []
        return
    await service.sql("UPDATE pgqueuer_log SET created = now() - interval '8 days' WHERE id = 1")
    before = await service.sql("SELECT id FROM pgqueuer_log ORDER BY id")
    async with database_queue(service.engine) as database:
        await Runner(service.app, {}, database).clean()
    assert await service.sql("SELECT id FROM pgqueuer_log ORDER BY id") == before[1:]


# ---- Stopping ----


async def test_running_job_is_finished_when_the_service_stops(service: Service) -> None:
    async with service.working():
        await service.enqueue(take_long)
        assert await service.next() == "began"
        asyncio.get_running_loop().call_soon(service.state["may_end"].set)
    assert await service.next() == "ended"


async def test_job_that_takes_too_long_is_given_back(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.working():
        await service.enqueue(take_long)
        assert await service.next() == "began"
        service.app.state.stopping.timeout = 0
    if service.is_on_postgresql:
        rows = await service.sql("SELECT status::text, queue_manager_id FROM pgqueuer")
        assert rows == [("queued", None)]
        service.state["may_end"].set()
        async with service.working():
            assert [await service.next(), await service.next()] == ["began", "ended"]
    else:
        assert "1 jobs are lost" in caplog.text


async def test_jobs_in_memory_are_run_before_the_process_ends(service: Service) -> None:
    if service.is_on_postgresql:
        pytest.skip("they are in the database")
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
async def test_application_runs_its_jobs_itself_on_sqlite_but_not_in_tests(
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
    async with app.router.lifespan_context(app), app.state.session_factory() as session:
        await run.enqueue(session)
        await session.commit()
    assert ran == (["hello"] if runs and not service.is_on_postgresql else [])


# ---- The worker, on PostgreSQL ----


@pytest.fixture
def signals() -> Any:
    """What handles signals, restored after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_worker_runs_until_it_is_told_to_stop(
    service: Service, on_postgresql: None, signals: None, tmp_path: Path
) -> None:
    file = tmp_path / "alive"
    service.app.state.settings.jobs_health_file = file

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield service.state

    app = build_app(service.app.state.settings, lifespan, jobs=JOBS)
    working = asyncio.create_task(work(app))
    await service.enqueue(note, "a")
    assert await service.next() == "a"
    assert file.exists()
    os.kill(os.getpid(), signal.SIGTERM)
    await working


async def test_worker_without_tables_says_what_to_do(
    service: Service, on_postgresql: None, signals: None
) -> None:
    def drop(connection: Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            drop_job_tables()

    async with service.engine.begin() as connection:
        await connection.run_sync(drop)
        assert not set(TABLES) & set(
            await connection.run_sync(lambda c: inspect(c).get_table_names())
        )
    with pytest.raises(SystemExit, match="alembic upgrade head"):
        await work(service.app)


LOSE = """
    WITH job AS (
        UPDATE pgqueuer SET status = 'picked', heartbeat = now() - interval '1 hour' RETURNING id
    ) INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint) SELECT id, 'picked', 0, 'note'
    FROM job
"""


async def test_job_of_a_worker_that_died_is_taken_over(
    service: Service, on_postgresql: None
) -> None:
    await service.enqueue(note, "a")
    await service.sql(LOSE)
    async with service.working():
        assert await service.next() == "a"


async def test_job_that_kills_its_workers_fails_for_good(
    service: Service, on_postgresql: None, capsys: pytest.CaptureFixture[str]
) -> None:
    await service.enqueue(job(name="note", attempts=1)(note.function), "a")
    for _ in range(3):
        await service.sql(LOSE)
    one_attempt = job(name="note", attempts=1)(note.function)
    service.app.state.jobs.known["note"] = one_attempt
    async with service.working():
        await service.enqueue(note_later, "another")
        assert await service.next() == "another"
    await list_failed(service.app)
    assert "WorkerLostError: 3 workers died while they ran it" in capsys.readouterr().out


async def test_job_that_cannot_be_put_back_is_left_to_its_heartbeat(
    service: Service, on_postgresql: None
) -> None:
    await service.enqueue(note, "a")
    async with database_queue(service.engine) as queue:
        (row,) = await queue.browse_queue()
        away = patch.object(queue.driver, "fetch", AsyncMock(side_effect=ZeroDivisionError))
        with away, pytest.raises(AbandonedError):
            await queue.retry_job(row, NOW, None)
        await queue.log_jobs([(row, "canceled", None)])
        assert len(await queue.browse_queue()) == 1


async def test_statement_waits_for_a_database_that_is_away(service: Service) -> None:
    driver = EngineDriver(service.engine)
    away = DatabaseUnavailableError("SELECT 1", None, ConnectionError("away"))
    answers = AsyncMock(side_effect=[away, []])
    with patch.object(job_driver, "run", answers), patch.object(job_driver, "PAUSE", 0):
        assert await driver.fetch("SELECT 1") == []
    driver.shutdown.set()
    with (
        patch.object(job_driver, "run", AsyncMock(side_effect=away)),
        pytest.raises(DatabaseUnavailableError),
    ):
        await driver.fetch("SELECT 1")


async def test_connection_that_listens_is_opened_again(
    service: Service, on_postgresql: None
) -> None:
    heard: asyncio.Queue[str | bytes | bytearray] = asyncio.Queue()
    listens = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> :not"
    async with database_queue(service.engine) as queue:
        driver = queue.driver
        assert isinstance(driver, EngineDriver)
        away = DatabaseUnavailableError("LISTEN", None, ConnectionError("away"))
        listen = AsyncMock(side_effect=[away, *[DEFAULT] * 9], wraps=driver._listen_until_lost)
        with (
            patch.object(job_driver, "PAUSE", 0),
            patch.object(driver, "_listen_until_lost", listen),
        ):
            await driver.add_listener("of_this_test", heard.put_nowait)
            first = await backend(service, listens, 0)
            await service.sql("SELECT pg_terminate_backend(:pid)", pid=first)
            await backend(service, listens, first)
        await queue.driver.notify("of_this_test", "again")
        assert await heard.get() == "again"


async def backend(service: Service, query: str, other: int) -> int:
    """Wait for a backend of the server, but not for `other`; return its number."""
    while not (rows := await service.sql(query, **{"not": other})):
        await asyncio.sleep(0.01)
    number: int = rows[0][0]
    return number


async def test_statements_can_be_printed(service: Service) -> None:
    async with service.engine.begin() as connection:
        driver, heard = ConnectionDriver(connection), list[str | bytes | bytearray]()
        async with driver:
            await driver.add_listener("nobody", heard.append)
            assert await driver.fetch("SELECT 1 AS one") == [{"one": 1}]
            assert not driver.shutdown.is_set()
            assert driver.tm.tasks == set()


# ---- The commands ----


@pytest.mark.parametrize(
    ("arguments", "called"),
    [([], "work"), (["failed"], "list_failed"), (["retry", "3", "all"], "retry_failed")],
)
def test_command_does_what_it_says(
    arguments: list[str], called: str, standalone_app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = AsyncMock()
    monkeypatch.setattr("app.main.create_app", lambda: standalone_app)
    monkeypatch.setattr(worker, called, command)
    if engine_of(standalone_app).dialect.name == "postgresql":
        worker.main(arguments)
        ids = [arguments[1:]] if arguments[1:] else []
        assert command.await_args_list == [call(standalone_app, *ids)]
    else:
        with pytest.raises(SystemExit, match="On SQLite"):
            worker.main(arguments)


# ---- The tables ----


async def test_tables_are_those_that_the_queue_needs(service: Service, on_postgresql: None) -> None:
    async with database_queue(service.engine) as queue:
        plan = await queue.plan_upgrade()
    if plan.statements:
        written = "\n".join(f"    op.execute({each!r})" for each in plan.statements)
        pytest.fail(f"PgQueuer needs other tables. Write a revision that does this:\n\n{written}")


async def test_migrations_create_the_tables_if_there_are_jobs(
    db_engine: AsyncEngine, isolation: object
) -> None:
    from app.main import create_app

    async with isolation.engine.connect() as connection:  # type: ignore[attr-defined]
        names = await connection.run_sync(lambda each: inspect(each).get_table_names())
    needs_tables = db_engine.dialect.name == "postgresql" and create_app().state.jobs.known
    if needs_tables and TABLES[0] not in names:
        pytest.fail(NO_TABLES, pytrace=False)
