"""A real server under load, even if it is killed, loses no acknowledged write."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.load import Content, Load
from tests.rendering import Project
from tests.serving import Server, free_port, serving
from tests.test_server import PRODUCTION

# Cheap password hashes, and no limit on log-ins: these tests are about the database.
UNLIMITED = {"ARGON2_MEMORY_KIB": "32", "ARGON2_TIME_COST": "1"}
UNLIMITED |= {"LOG_INS_PER_ACCOUNT": "100000", "LOG_INS_PER_CLIENT": "100000"}

# Prints the contents of the tables.
READ_TABLES = """
import asyncio, json, os
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
async def read():
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        queries = (
            "SELECT email FROM users",
            "SELECT id, title FROM items WHERE owner_id IN (SELECT id FROM users)",
            "SELECT item_id, name FROM tags ORDER BY name",
        )
        rows = [[list(row) for row in await connection.execute(text(query))] for query in queries]
    await engine.dispose()
    print(json.dumps(rows))
asyncio.run(read())
"""


@pytest.fixture
def database_url(project: Project) -> Iterator[str]:
    """A migrated database."""
    with project.new_database() as url:
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        yield url


@contextmanager
def two_workers(project: Project, url: str, log: Path) -> Iterator[Server]:
    port = free_port()
    fastapi = str(project.path / ".venv/bin/fastapi")
    with serving(
        *(fastapi, "run", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"),
        cwd=project.path, port=port, log=log,
        env={**os.environ, **PRODUCTION, **UNLIMITED, "DATABASE_URL": url},
    ) as server:  # fmt: skip
        yield server


def check_tables(load: Load, project: Project, url: str) -> None:
    """Compare the tables with the ledger. Raises AssertionError."""
    python = str(project.path / ".venv/bin/python")
    users, items, tags = json.loads(project.check(python, "-c", READ_TABLES, DATABASE_URL=url))
    names: dict[int, list[str]] = {item_id: [] for item_id, _ in items}
    for item_id, name in tags:
        names[item_id].append(name)
    contents = {item_id: Content(title, tuple(names[item_id])) for item_id, title in items}
    differences = list(load.ledger.differences([email for [email] in users], contents))
    assert not differences, "\n".join([*differences[:10], load.report()])


def check_answers(load: Load, server: Server) -> None:
    """Check that each response was right. Raises AssertionError, with the end of the log."""
    log = server.log.read_text(encoding="utf-8")[-3000:]
    assert not load.unexpected, f"{load.report()}\n\n{log}"


def kill_all(server: Server) -> bool:
    os.killpg(server.process.pid, signal.SIGKILL)
    return True


def kill_one_worker(server: Server) -> bool:
    log = server.log.read_text(encoding="utf-8")
    os.kill(int(re.findall(r"Started server process \[(\d+)\]", log)[0]), signal.SIGKILL)
    return False


@with_projects("default", "postgresql")
@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(1000, marks=pytest.mark.ci),
        pytest.param(10_000, marks=pytest.mark.slow),
    ],
)
def test_tables_contain_exactly_the_acknowledged_writes(
    project: Project, database_url: str, requests: int, tmp_path: Path
) -> None:
    load = Load()
    with two_workers(project, database_url, tmp_path / "log") as server:
        load.run(server.url, requests)
        check_answers(load, server)
    check_tables(load, project, database_url)
    assert load.answers.total() >= requests
    assert {name for name, _ in load.answers} >= {"change", "delete", "list", "change foreign"}


@with_projects("default", ci=["postgresql"])
@pytest.mark.parametrize(
    "kills",
    [
        1,
        pytest.param(2, marks=pytest.mark.ci),
        pytest.param(10, marks=pytest.mark.slow),
    ],
)
def test_killed_server_loses_no_acknowledged_write(
    project: Project, database_url: str, kills: int, tmp_path: Path
) -> None:
    load = Load()
    for number in range(kills):
        with two_workers(project, database_url, tmp_path / f"log{number}") as server:
            kill = kill_one_worker if number % 2 else kill_all
            load.run(server.url, 400, partial(kill, server))
            check_answers(load, server)
        check_tables(load, project, database_url)
    assert load.unanswered
