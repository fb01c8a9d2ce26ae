"""A real server while its database is down, frozen, busy or gone, and afterwards."""

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant
from tests.rendering import Project, new_directory, run
from tests.serving import free_port, serving
from tests.test_database import Checkout

# The server waits less long than in production, and keeps one connection.
IMPATIENT = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "a-key-that-nobody-else-knows-0123456789",
    "DATABASE_POOL_SIZE": "2",
    "DATABASE_MAX_OVERFLOW": "1",
    "DATABASE_POOL_TIMEOUT": "1",
    "DATABASE_STATEMENT_TIMEOUT": "1",
    "DATABASE_LOCK_TIMEOUT": "0.3",
}
CONNECTIONS = 3
HOLDS = 1.2  # seconds, longer than a request waits for a connection
WELL_WITHIN = 15.0  # seconds

# Endpoints that use the database in ways that the example does not.
ENDPOINTS = """
import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from app.core.database import SessionDep, SessionFactoryDep

router = APIRouter()
holding = set()


@router.get("/holding")
async def count_executed_statements() -> int:
    return len(holding)


@router.get("/used")
async def count_used_connections(request: Request) -> int:
    return request.app.state.session_factory().bind.pool.checkedout()


@router.post("/execute")
async def execute(session: SessionDep, statement: str, seconds: float = 0) -> None:
    await session.execute(text(statement))
    holding.add(session)
    try:
        await asyncio.sleep(seconds)
        await session.commit()
    finally:
        holding.remove(session)


@router.get("/stream", response_class=StreamingResponse)
async def stream(factory: SessionFactoryDep) -> AsyncIterator[str]:
    async with factory() as session:
        await session.execute(text("SELECT 1"))
        yield "begun"
        await asyncio.sleep(60)
"""
ROUTER = Mutant(
    "more endpoints",
    "app/main.py",
    "    return app\n",
    "    from app.faults import router\n\n    app.include_router(router)\n    return app\n",
)


EXECUTE = "/execute?statement="
SELECT, SLEEP = f"{EXECUTE}SELECT 1", f"{EXECUTE}SELECT pg_sleep(60)"
LOCK = f"{EXECUTE}SELECT pg_advisory_xact_lock(1)"


def migrate(project: Project, copy: Path, url: str) -> None:
    env = {**IMPATIENT, "DATABASE_URL": url}
    done = run(project.path / ".venv/bin/alembic", "upgrade", "head", cwd=copy, env=env)
    assert done.returncode == 0, done.stdout


@contextmanager
def served(project: Project, copy: Path, log: Path, **env: str) -> Iterator[httpx.Client]:
    """Serve a copy of the project with more endpoints; yield a client."""
    (copy / "app/faults.py").write_text(ENDPOINTS, encoding="utf-8")
    plant(ROUTER, copy)
    port = free_port()
    with (
        serving(
            *(str(project.path / ".venv/bin/fastapi"), "run", "--port", str(port)),
            cwd=copy, port=port, log=log, env={**os.environ, **IMPATIENT, **env},
        ) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):  # fmt: skip
        yield client
        said = server.stop()
    assert "Traceback" not in said, said


@contextmanager
def frozen(checkout: Checkout) -> Iterator[None]:
    """Freeze all processes of PostgreSQL; they keep their connections."""
    main = checkout.server()
    children = Path(f"/proc/{main}/task/{main}/children").read_text(encoding="utf-8")
    processes = [main, *map(int, children.split())]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until `is_so` returns True."""
    deadline = time.monotonic() + WELL_WITHIN
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def together(client: httpx.Client, url: str, times: int) -> list[httpx.Response]:
    """Send the same request several times at once."""
    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(client.post, [url] * times))


@contextmanager
def held(client: httpx.Client, url: str, times: int) -> Iterator[None]:
    """Send requests that have executed their statement; at the end, wait for the responses."""
    with ThreadPoolExecutor(times) as threads:
        answers = threads.map(client.post, [f"{url}&seconds={HOLDS}"] * times)
        eventually(lambda: client.get("/holding").json() == times)
        yield
        assert [answer.status_code for answer in answers] == [200] * times


def used(client: httpx.Client) -> int:
    """Return how many connections are in use."""
    number: int = client.get("/used").json()
    return number


def check_refused(*responses: httpx.Response) -> None:
    """Check that the client was told to try again."""
    for response in responses:
        assert response.status_code == 503, response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["detail"] == "The database does not answer"


def check_alive_but_not_ready(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503


def check_well(client: httpx.Client) -> None:
    """Check that the server has recovered without a restart, and has lost no connection."""
    eventually(lambda: client.get("/readyz").status_code == 200)
    eventually(lambda: used(client) == 0)
    answers = together(client, SELECT, CONNECTIONS)
    assert [answer.status_code for answer in answers] == [200] * CONNECTIONS


def test_postgresql_is_busy_frozen_gone_and_back(
    installed: Callable[[str], Project], tmp_path: Path
) -> None:
    project, port = installed("postgresql"), free_port()
    url = f"postgresql+asyncpg://postgres@localhost:{port}/my-service"
    with new_directory("checkout") as directory:
        copy = copied(project, directory / "my-service")
        env = {"UV_PROJECT_ENVIRONMENT": str(project.path / ".venv"), "DATABASE_URL": url}
        checkout = Checkout(copy, env, port)
        with ExitStack() as database:
            database.enter_context(checkout.database())
            migrate(project, copy, url)
            with served(project, copy, tmp_path / "log", DATABASE_URL=url) as client:
                check_limits_of_postgresql(client)
                check_clients_that_leave(client)
                with frozen(checkout):
                    check_alive_but_not_ready(client)
                    check_refused(*together(client, SELECT, 2 * CONNECTIONS))
                check_well(client)
                database.close()  # kills it
                check_refused(*together(client, SELECT, 2 * CONNECTIONS))
                check_alive_but_not_ready(client)
                database.enter_context(checkout.database())
                check_well(client)


def check_limits_of_postgresql(client: httpx.Client) -> None:
    """Wait for a statement, for a lock, and for a connection."""
    check_well(client)
    check_refused(client.post(SLEEP))
    with held(client, LOCK, 1):
        check_refused(client.post(LOCK))
    with held(client, SELECT, CONNECTIONS):
        check_refused(client.post(SELECT))
    check_well(client)


def check_clients_that_leave(client: httpx.Client) -> None:
    """Leave in the middle of a request, and of a stream."""
    target = f"{SELECT}&seconds={2 * HOLDS}".replace(" ", "%20")
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address) as connection:
        connection.sendall(f"POST {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually(lambda: client.get("/holding").json() == 1)
        assert used(client) == 1
    check_well(client)
    with client.stream("GET", "/stream") as response:
        texts = response.iter_text()  # when it is gone, the connection is closed
        assert next(texts) == "begun"
        assert used(client) == 1
    check_well(client)


IMPATIENT_SQLITE = Mutant(
    "a writer waits for less time",
    "app/database.py",
    "ENGINE_OPTIONS: dict[str, Any] = {}",
    "ENGINE_OPTIONS: dict[str, Any] = {'connect_args': {'timeout': 0.2}}",
)


def test_sqlite_is_gone_locked_and_back(default_project: Project, tmp_path: Path) -> None:
    copy, data = copied(default_project, tmp_path / "copy"), tmp_path / "data"
    data.mkdir()
    plant(IMPATIENT_SQLITE, copy)
    url = f"sqlite+aiosqlite:///{data}/service.db"
    migrate(default_project, copy, url)
    elsewhere = data.rename(tmp_path / "elsewhere")
    with served(default_project, copy, tmp_path / "log", DATABASE_URL=url) as client:
        check_alive_but_not_ready(client)
        check_refused(*together(client, SELECT, 2 * CONNECTIONS))
        elsewhere.rename(data)
        check_well(client)
        with closing(sqlite3.connect(data / "service.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            check_refused(client.post(SELECT))
            assert client.get("/readyz").status_code == 200  # reading still works
        check_clients_that_leave(client)


SLOW_MIGRATION = Mutant(
    "a migration that takes a while, and leaves its transaction",
    "migrations/versions/0001_users_and_items.py",
    "\n\ndef downgrade() -> None:\n",
    """    __import__("time").sleep(4)
    with op.get_context().autocommit_block():
        op.create_index("ix_slow", "users", ["created_at"], postgresql_concurrently=True)


def downgrade() -> None:
    op.drop_index("ix_slow", "users")
""",
)


@pytest.mark.ci
@with_projects("default", "postgresql")
def test_eight_migrate_an_empty_database_at_once(project: Project, copy: Path) -> None:
    plant(SLOW_MIGRATION, copy)
    alembic = (project.path / ".venv/bin/alembic", "upgrade", "head")
    with project.new_database() as url, ThreadPoolExecutor(8) as threads:
        env = {"DATABASE_URL": url}
        done = list(threads.map(lambda _: run(*alembic, cwd=copy, env=env), range(8)))
        assert [each.returncode for each in done] == [0] * 8, done
