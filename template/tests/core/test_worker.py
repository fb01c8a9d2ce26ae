"""The worker on PostgreSQL runs all jobs, even those that other workers have left behind."""

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, AsyncMock, call, patch

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fastapi import FastAPI
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core import job_queue, worker
from app.core.application import build_app
from app.core.job_queue import AbandonedError, EngineDriver, Worker, database_queue
from app.core.job_tables import TABLES, create_job_tables, drop_job_tables
from app.core.jobs import job
from app.core.unavailable import DatabaseUnavailableError
from app.core.worker import NO_TABLES, engine_of, list_failed, retry_failed, work
from app.settings import Settings
from tests.core.test_jobs import (
    JOBS,
    NOW,
    Service,
    fail,
    note,
    note_later,
    service_on,
    take_long,
    # What holds in memory also holds here: pytest runs these tests again, with a worker.
    test_delayed_job_waits,  # noqa: F401
    test_job_ends_after_its_last_attempt,  # noqa: F401
    test_job_of_a_savepoint_that_is_rolled_back_never_runs,  # noqa: F401
    test_job_of_a_transaction_that_is_rolled_back_never_runs,  # noqa: F401
    test_job_runs_after_the_commit,  # noqa: F401
    test_job_that_fails_is_run_again,  # noqa: F401
    test_running_job_is_finished_when_the_service_stops,  # noqa: F401
    test_scheduled_job_runs_by_itself,  # noqa: F401
    test_session_can_be_used_again,  # noqa: F401
)
from tests.harness.databases import Databases
from tests.harness.isolation import Isolation


@asynccontextmanager
async def work_until_left(service: Service) -> AsyncIterator[None]:
    """Run jobs as a worker does."""
    stop = asyncio.Event()
    async with database_queue(service.engine) as queue:
        running = asyncio.create_task(Worker(service.app, service.state, queue).run_until(stop))
        try:
            yield
        finally:
            stop.set()
            await running


def create_tables(connection: Connection) -> None:
    """Create the tables of jobs, unless the project's migrations have."""
    if not inspect(connection).has_table(TABLES[0]):
        with Operations.context(MigrationContext.configure(connection)):
            create_job_tables()


@pytest.fixture
async def service(databases: Databases, settings: Settings) -> AsyncIterator[Service]:
    """A service with jobs, which a worker runs."""
    async with service_on(databases, settings, work_until_left) as service:
        if service.engine.dialect.name != "postgresql":
            pytest.skip("the jobs on SQLite are in memory")
        async with service.engine.begin() as connection:
            await connection.run_sync(create_tables)
        yield service


async def execute(service: Service, statement: str, **values: object) -> list[Any]:
    """Execute SQL; return its rows."""
    async with service.engine.begin() as connection:
        result = await connection.execute(text(statement), values)
        return list(result.all()) if result.returns_rows else []


# ---- Running ----


async def test_job_that_has_failed_for_good_can_be_seen_and_run_again(
    service: Service, capsys: pytest.CaptureFixture[str]
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
    assert capsys.readouterr().out.splitlines() == [
        "0 of 1 failed jobs will be run again.",
        "1 of 1 failed jobs will be run again.",
        "0 of 0 failed jobs will be run again.",
    ]
    async with service.working():
        assert await service.next() == "attempt 1"


async def test_what_became_of_jobs_is_deleted_after_a_time(service: Service) -> None:
    async with service.working():
        await service.enqueue(note, "a")
        await service.next()
    await execute(service, "UPDATE pgqueuer_log SET created = '2026-01-01' WHERE id = 1")
    before = await execute(service, "SELECT id FROM pgqueuer_log ORDER BY id")
    async with database_queue(service.engine) as queue:
        await Worker(service.app, {}, queue).clean()
    assert await execute(service, "SELECT id FROM pgqueuer_log ORDER BY id") == before[1:]


async def test_job_that_takes_too_long_is_given_back(service: Service) -> None:
    async with service.working():
        await service.enqueue(take_long)
        assert await service.next() == "began"
        service.app.state.stopping.timeout = 0
    rows = await execute(service, "SELECT status::text, queue_manager_id FROM pgqueuer")
    assert rows == [("queued", None)]
    service.state["may_end"].set()
    async with service.working():
        assert [await service.next(), await service.next()] == ["began", "ended"]


@pytest.fixture
def signals() -> Iterator[None]:
    """Restores the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_worker_runs_until_it_is_told_to_stop(
    service: Service, signals: None, tmp_path: Path
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


async def test_worker_without_tables_says_what_to_do(service: Service, signals: None) -> None:
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
    service: Service,
) -> None:
    await service.enqueue(note, "a")
    await execute(service, LOSE)
    async with service.working():
        assert await service.next() == "a"


async def test_job_that_kills_its_workers_fails_for_good(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    await service.enqueue(job(name="note", attempts=1)(note.function), "a")
    for _ in range(3):
        await execute(service, LOSE)
    one_attempt = job(name="note", attempts=1)(note.function)
    service.app.state.jobs.known["note"] = one_attempt
    async with service.working():
        await service.enqueue(note_later, "another")
        assert await service.next() == "another"
    await list_failed(service.app)
    assert "WorkerLostError: 3 workers died while they ran it" in capsys.readouterr().out


async def test_job_that_cannot_be_put_back_is_left_to_its_heartbeat(
    service: Service,
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
    driver = EngineDriver(service.engine, service.engine)
    away = DatabaseUnavailableError("SELECT 1", None, ConnectionError("away"))
    answers = AsyncMock(side_effect=[away, []])
    with patch.object(job_queue, "run", answers), patch.object(job_queue, "PAUSE", 0):
        assert await driver.fetch("SELECT 1") == []
    driver.shutdown.set()
    with (
        patch.object(job_queue, "run", AsyncMock(side_effect=away)),
        pytest.raises(DatabaseUnavailableError),
    ):
        await driver.fetch("SELECT 1")


async def test_connection_that_listens_is_opened_again(
    service: Service,
) -> None:
    heard: asyncio.Queue[str | bytes | bytearray] = asyncio.Queue()
    listens = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> :not"
    async with database_queue(service.engine) as queue:
        driver = queue.driver
        assert isinstance(driver, EngineDriver)
        away = DatabaseUnavailableError("LISTEN", None, ConnectionError("away"))
        listen = AsyncMock(side_effect=[away, *[DEFAULT] * 9], wraps=driver._listen_until_lost)
        with (
            patch.object(job_queue, "PAUSE", 0),
            patch.object(driver, "_listen_until_lost", listen),
        ):
            await driver.add_listener("of_this_test", heard.put_nowait)
            await driver.add_listener("of_another", heard.put_nowait)
            first = await backend(service, listens, 0)
            await execute(service, "SELECT pg_terminate_backend(:pid)", pid=first)
            await backend(service, listens, first)
        await queue.driver.notify("of_this_test", "again")
        assert await heard.get() == "again"


async def backend(service: Service, query: str, other: int) -> int:
    """Wait until `query` finds a backend process other than `other`; return its number."""
    for _ in range(1000):
        if rows := await execute(service, query, **{"not": other}):
            break
        await asyncio.sleep(0.01)
    number: int = rows[0][0]
    return number


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
    monkeypatch.setattr(engine_of(standalone_app).dialect, "name", "postgresql")
    monkeypatch.setattr(worker, called, command)
    worker.main(arguments)
    ids = [arguments[1:]] if arguments[1:] else []
    assert command.await_args_list == [call(standalone_app, *ids)]


def test_there_is_no_worker_on_sqlite(
    standalone_app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.create_app", lambda: standalone_app)
    monkeypatch.setattr(engine_of(standalone_app).dialect, "name", "sqlite")
    with pytest.raises(SystemExit, match="On SQLite"):
        worker.main([])


def test_module_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker", "--help"])
    monkeypatch.delitem(sys.modules, "app.core.worker")
    with pytest.raises(SystemExit):
        runpy.run_module("app.core.worker", run_name="__main__")
    assert "python -m app.core.worker" in capsys.readouterr().out


# ---- The tables ----


async def test_tables_are_those_that_the_queue_needs(service: Service) -> None:
    async with database_queue(service.engine) as queue:
        plan = await queue.plan_upgrade()
    if plan.statements:
        written = "\n".join(f"    op.execute({each!r})" for each in plan.statements)
        pytest.fail(f"PgQueuer needs other tables. Write a revision with:\n\n{written}")


async def test_migrations_create_the_tables_if_there_are_jobs(
    db_engine: AsyncEngine, isolation: Isolation
) -> None:
    from app.main import create_app

    async with isolation.engine.connect() as connection:
        names = await connection.run_sync(lambda each: inspect(each).get_table_names())
    needs_tables = db_engine.dialect.name == "postgresql" and create_app().state.jobs.known
    if needs_tables and TABLES[0] not in names:
        pytest.fail(NO_TABLES, pytrace=False)
