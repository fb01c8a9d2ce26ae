"""Real workers that are killed in the middle of their jobs: every acknowledged job runs."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mutants import Mutant, copied, plant
from tests.rendering import Project, new_directory, run
from tests.serving import answers, free_port
from tests.test_database import Checkout

REQUESTS = 2000
CLIENTS = 16
KILLS = 10
"""How often a process is killed: a worker or a web process, in turn."""
CONCURRENCY = 10
"""How many jobs a worker runs at once."""
HEARTBEAT_TIMEOUT = 5
ENDS_WITHIN = 60.0
"""Seconds after the last request in which all jobs must run."""
STARTS_WITHIN = 60.0

ENV = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "a-key-that-nobody-else-knows-0123456789",
    "DATABASE_POOL_TIMEOUT": "10",
    "JOBS_CONCURRENCY": str(CONCURRENCY),
    "JOBS_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
    "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "2",
}

# Each request writes a row and a job; the job stores which process runs it, and when.
FEATURE = """
import asyncio
import os

from fastapi import APIRouter, HTTPException
from sqlalchemy import text

from app.core.database import SessionDep
from app.core.jobs import JobContext, job

router = APIRouter()
TABLES = (
    "CREATE TABLE kept (key INTEGER PRIMARY KEY)",
    "CREATE TABLE runs (id SERIAL PRIMARY KEY, key INTEGER, process INTEGER,"
    " began TIMESTAMPTZ DEFAULT clock_timestamp(), ended TIMESTAMPTZ)",
)


@job()
async def note(context: JobContext, key: int, seconds: float) -> None:
    async with context.session_factory() as session:
        insert = text("INSERT INTO runs (key, process) VALUES (:key, :process) RETURNING id")
        run = await session.scalar(insert, {"key": key, "process": os.getpid()})
        await session.commit()
        await asyncio.sleep(seconds)
        end = text("UPDATE runs SET ended = clock_timestamp() WHERE id = :run")
        await session.execute(end, {"run": run})
        await session.commit()


@router.post("/kept/{key}")
async def keep(key: int, session: SessionDep, seconds: float = 0.02) -> None:
    await session.execute(text("INSERT INTO kept VALUES (:key)"), {"key": key})
    await note.enqueue(session, key=key, seconds=seconds)
    if key % 10 == 0:
        raise HTTPException(418, "rolled back")
    await session.commit()
"""
MUTANTS = (
    Mutant("its job", "app/main.py", "jobs=[", "jobs=[kept.note, "),
    Mutant(
        "its router", "app/main.py", "    return", "    app.include_router(kept.router)\n    return"
    ),
    Mutant(
        "its import", "app/main.py", "from app.settings", "from app import kept\nfrom app.settings"
    ),
)
SQL = """
import asyncio, json, os, sys
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
async def run():
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        for statement in sys.argv[1:]:
            result = await connection.execute(text(statement))
    print(json.dumps([list(row) for row in result] if result.returns_rows else []))
    await engine.dispose()
asyncio.run(run())
"""
RUNS = (
    "SELECT key, process, extract(epoch FROM began)::float8, extract(epoch FROM ended)::float8"
    " FROM runs ORDER BY id"
)


@dataclass
class Process:
    """A process that is started again after it was killed, as by a supervisor."""

    command: tuple[str, ...]
    cwd: Path
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> int:
        """Kill it; return its process id."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return self.process.pid

    def stop(self) -> int:
        """Tell it to stop; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def wait_for(self, sign: str) -> None:
        """Wait until it has logged `sign`."""
        eventually(lambda: sign in self.text(), STARTS_WITHIN, self.text)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")


@dataclass
class Deployment:
    """A copy of a project with a database, and its processes."""

    project: Project
    copy: Path
    checkout: Checkout
    logs: Path
    stack: ExitStack

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **ENV, **self.checkout.env}

    def start(self, name: str, *command: str, **env: str) -> Process:
        """Start a process that ends with the test."""
        binary, *arguments = command
        path = str(self.project.path / ".venv/bin" / binary)
        process = Process(
            (path, *arguments), self.copy, {**self.env, **env}, self.logs / f"{name}.log"
        )
        process.start()
        self.stack.callback(process.kill)
        return process

    def worker(self, name: str, **env: str) -> Process:
        return self.start(name, "python", "-m", "app.core.worker", **env)

    def web(self, name: str) -> tuple[Process, str]:
        port = free_port()
        process = self.start(name, "uvicorn", "app.main:app", "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(url), STARTS_WITHIN, process.text)
        return process, url

    def sql(self, *statements: str) -> list[list[Any]]:
        """Execute SQL statements; return the rows of the last one."""
        python = self.project.path / ".venv/bin/python"
        done = run(python, "-c", SQL, *statements, cwd=self.copy, env=self.checkout.env)
        assert done.returncode == 0, done.stdout
        rows: list[list[Any]] = json.loads(done.stdout)
        return rows

    def is_idle(self) -> bool:
        """Return whether no job is waiting or running."""
        return self.sql("SELECT count(*) FROM pgqueuer") == [[0]]


def eventually(
    is_so: Callable[[], bool], within: float, describe: Callable[[], object] = lambda: ""
) -> None:
    """Wait until `is_so` returns True. Raises AssertionError if it does not `within` seconds."""
    deadline = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.1)


@pytest.fixture
def deployment(installed: Callable[[str], Project], tmp_path: Path) -> Iterator[Deployment]:
    """A project with a feature that writes a row and a job for each request, and its database."""
    project, port = installed("postgresql"), free_port()
    url = f"postgresql+asyncpg://postgres@localhost:{port}/my-service"
    with new_directory("checkout") as directory, ExitStack() as stack:
        copy = copied(project, directory / "my-service")
        (copy / "app/kept.py").write_text(FEATURE, encoding="utf-8")
        for mutant in MUTANTS:
            plant(mutant, copy)
        env = {"UV_PROJECT_ENVIRONMENT": str(project.path / ".venv"), "DATABASE_URL": url}
        yield Deployment(project, copy, Checkout(copy, env, port), tmp_path, stack)


@contextmanager
def migrated(deployment: Deployment) -> Iterator[None]:
    """Start the database with the tables of the project and of the feature."""
    with deployment.checkout.database():
        alembic = deployment.project.path / ".venv/bin/alembic"
        done = run(alembic, "upgrade", "head", cwd=deployment.copy, env=deployment.env)
        assert done.returncode == 0, done.stdout
        create = "import asyncio, app.kept; print(*app.kept.TABLES, sep='|')"
        python = deployment.project.path / ".venv/bin/python"
        tables = run(python, "-c", create, cwd=deployment.copy, env=deployment.env).stdout
        deployment.sql(*tables.strip().split("|"))
        yield


@dataclass
class Clients:
    """Clients of two web processes, and the responses that they received.

    Like a proxy, they try the other process if one does not answer.
    """

    urls: list[str]
    kept: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    has_gone_on: asyncio.Event = field(default_factory=asyncio.Event)
    unknown: set[int] = field(default_factory=set)

    @property
    def answered(self) -> int:
        """How many requests were acknowledged, or refused."""
        return len(self.kept) + len(self.rolled_back)

    async def run(self) -> None:
        """Make requests until enough of them are answered."""
        keys = itertools.count(1)
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._use(keys, number))

    async def _use(self, keys: Iterator[int], turn: int) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            while self.answered < REQUESTS:
                key = next(keys)
                try:
                    response = await client.post(f"{self.urls[turn % 2]}/kept/{key}")
                    status = response.status_code
                except httpx.TransportError:
                    status = 0
                known = {200: self.kept, 418: self.rolled_back}
                known.get(status, self.unknown).add(key)
                self.has_gone_on.set()
                if status not in known:
                    turn += 1
                    await asyncio.sleep(0.2)


@dataclass
class Chaos:
    """Kills processes while clients use the service, and starts them again."""

    deployment: Deployment
    clients: Clients
    workers: list[Process]
    webs: list[Process]
    killed: set[int] = field(default_factory=set)
    outage: tuple[float, float] = (0.0, 0.0)

    async def run(self, restart: Callable[[], None]) -> None:
        """Kill at regular intervals, and restart the database in the middle."""
        victims = itertools.cycle([self.workers[0], self.webs[0], self.workers[1], self.webs[1]])
        for number in range(KILLS):
            await self._wait_for((number + 1) * REQUESTS // (KILLS + 2))
            victim = next(victims)
            self.killed.add(await asyncio.to_thread(victim.kill))
            victim.start()
            if number == KILLS // 2:
                began = time.time()
                await asyncio.to_thread(restart)
                self.outage = (began, time.time())

    async def _wait_for(self, answered: int) -> None:
        while self.clients.answered < answered:
            self.clients.has_gone_on.clear()
            await self.clients.has_gone_on.wait()


@pytest.mark.slow
def test_killed_processes_and_a_restart_of_the_database_lose_no_job(
    deployment: Deployment, record_property: Callable[[str, object], None]
) -> None:
    with ExitStack() as database:
        database.enter_context(migrated(deployment))
        with deployment.stack:
            workers = [deployment.worker(f"worker{number}") for number in (1, 2)]
            webs = [deployment.web(f"web{number}") for number in (1, 2)]
            clients = Clients([url for _, url in webs])
            chaos = Chaos(deployment, clients, workers, [process for process, _ in webs])

            def restart() -> None:
                database.close()  # kills it
                database.enter_context(deployment.checkout.database())

            async def use_and_kill() -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(clients.run())
                    group.create_task(chaos.run(restart))

            began = time.monotonic()
            asyncio.run(use_and_kill())
            asked = time.monotonic()
            eventually(deployment.is_idle, ENDS_WITHIN)
            ended = time.monotonic()
        runs = deployment.sql(RUNS)
    repeated = check(runs, clients, chaos)
    record_property(
        "tried",
        f"{REQUESTS} requests in {asked - began:.0f} s: {len(clients.kept)} kept, "
        f"{len(clients.rolled_back)} rolled back, {len(clients.unknown)} not answered; "
        f"{len(runs)} runs, {repeated} of them repeated, the last {ended - asked:.0f} s later",
    )


def check(runs: list[list[Any]], clients: Clients, chaos: Chaos) -> int:
    """Check which jobs have run, and why some have run again; return the number of repeats."""
    by_key: dict[int, list[list[Any]]] = defaultdict(list)
    for key, *others in runs:
        by_key[key].append(others)
    ended = {key for key, found in by_key.items() if any(end for *_, end in found)}
    assert clients.kept - ended == set(), "acknowledged, and not run"
    assert clients.rolled_back & by_key.keys() == set(), "rolled back, and run"
    repeated = 0
    began_outage, ended_outage = chaos.outage
    for key, found in by_key.items():
        for process, began, end in found[:-1]:
            repeated += 1
            in_outage = began < ended_outage + 1 and (end is None or end > began_outage - 1)
            assert process in chaos.killed or in_outage, f"{key} was run twice: {found}"
    # At most, the jobs of each killed worker, and of two workers that live through one restart.
    assert repeated <= (KILLS // 2 + 2) * CONCURRENCY
    return repeated


@pytest.mark.ci
def test_worker_that_is_told_to_stop_finishes_its_jobs_or_gives_them_back(
    deployment: Deployment,
) -> None:
    with migrated(deployment), deployment.stack:
        health = deployment.logs / "alive"
        worker = deployment.worker("worker1", JOBS_HEALTH_FILE=str(health))
        web, url = deployment.web("web")
        worker.wait_for("The worker is ready")
        assert health.exists()
        for key, seconds in ((1, 1), (2, 600)):
            httpx.post(f"{url}/kept/{key}", params={"seconds": seconds}, timeout=30)
        eventually(lambda: len(deployment.sql("SELECT id FROM runs")) == 2, 30, worker.text)
        assert worker.stop() == 0, worker.text()
        assert "The worker has stopped" in worker.text()
        # The short job is done; the long one is back in the queue, without a heartbeat to wait for.
        assert deployment.sql("SELECT key FROM runs WHERE ended IS NOT NULL") == [[1]]
        waits = "SELECT status::text, queue_manager_id::text, attempts FROM pgqueuer"
        assert deployment.sql(waits) == [["queued", None, 1]]
        deployment.worker("worker2")
        eventually(lambda: len(deployment.sql("SELECT id FROM runs WHERE key = 2")) == 2, 60)
        assert web.stop() in {0, -15}
