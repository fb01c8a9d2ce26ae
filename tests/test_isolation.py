"""The isolation proofs hold wherever they can run, and each part of the harness is needed."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants import Mutant, copied, failures, plant, run_tests
from tests.rendering import Project

# Taken before the environment is cleaned: a server of one's own, as a team has in its CI.
EXTERNAL = os.environ.get("TEST_DATABASE_URL")
BACKWARDS = "def pytest_collection_modifyitems(items): items.reverse()"
# One process for all orders: what one leaves behind would show in the next.
TWENTY_TIMES_SHUFFLED = """
import copy
import random


def pytest_collection_modifyitems(items):
    once = list(items)
    items.clear()
    for seed in range(20):
        random.Random(seed).shuffle(once)
        for item in map(copy.copy, once):
            item._initrequest()
            items.append(item)
"""

Installed = Callable[[str], Project]

TRANSACTION = "tests/harness/transaction.py"
SESSION = "tests/harness/session.py"
ISOLATION = "tests/harness/isolation.py"
ASGI = "tests/harness/asgi.py"
PLUGIN = "tests/harness/plugin.py"
CONFTEST = "tests/conftest.py"
DATABASE = "app/core/database.py"

MUTANTS = [
    Mutant(
        "SQLAlchemy's default join mode",
        TRANSACTION,
        '"join_transaction_mode": "create_savepoint"',
        '"join_transaction_mode": "conditional_savepoint"',
    ),
    Mutant(
        "sessions not bound to the transaction",
        ISOLATION,
        "        factory.kw = {**factory.kw, **self.session_options}\n",
        "",
    ),
    Mutant(
        "only the dependency overridden",
        ISOLATION,
        "        factory.kw = {**factory.kw, **self.session_options}\n",
        "        async def session():\n"
        "            async with async_sessionmaker(**self.session_options)() as session:\n"
        "                yield session\n"
        "        from app.core.database import get_session\n"
        "        app.dependency_overrides[get_session] = session\n",
    ),
    Mutant(
        "one session for test and application",
        ISOLATION,
        "        factory.kw = {**factory.kw, **self.session_options}\n",
        "        factory.kw = {**factory.kw, **self.session_options}\n"
        "        session = factory()\n"
        "        from app.core.database import get_session\n"
        "        app.dependency_overrides[get_session] = lambda: session\n",
    ),
    Mutant("no real BEGIN", DATABASE, ', "begin": begin_sqlite_transaction', ""),
    Mutant("foreign keys not enforced", DATABASE, "foreign_keys = ON", "foreign_keys = OFF"),
    Mutant(
        "no release when a session is closed",
        SESSION,
        "        if not self.has_pending_writes:\n            self.savepoint.commit()\n",
        "        if not self.has_pending_writes:\n            return\n",
    ),
    Mutant(
        "every closed session is released",
        SESSION,
        "        if not self.has_pending_writes:\n            self.savepoint.commit()\n",
        "        if True:\n            self.savepoint.commit()\n",
    ),
    Mutant(
        "a lock for each session in place of each request",
        TRANSACTION,
        "        await_only(self.turns.begin(served.get() or self.turns.test))\n",
        "        self.turns._make_room = lambda: asyncio.sleep(0)\n"
        "        await_only(self.turns.begin(Participant()))\n",
    ),
    Mutant(
        "no turns", "tests/harness/turns.py", "while self.current not in {None, who}", "while 0"
    ),
    Mutant(
        "requests not kept in turn",
        ISOLATION,
        "        await self._turns.begin(who)\n"
        "        self._turns.engage(who)\n"
        "        who.requests += 1\n",
        "",
    ),
    Mutant(
        "a request ends with one that it made to its own application",
        ISOLATION,
        "            who.requests -= 1\n",
        "            who.requests = 0\n",
    ),
    Mutant(
        "idle reads keep their turn",
        TRANSACTION,
        "while self.open_sessions and self.open_sessions[-1].is_idle",
        "while 0",
    ),
    Mutant(
        "uncommitted writes of the test not noticed",
        ISOLATION,
        "        if self._test_has_uncommitted_writes():",
        "        if False:",
    ),
    Mutant(
        "objects of the test not reloaded",
        ISOLATION,
        "            await reload_known_objects(self._session)\n",
        "",
    ),
    Mutant(
        "the connection may be committed",
        TRANSACTION,
        '            "commit": transaction.refuse_end,\n',
        "",
    ),
    Mutant(
        "a rollback may undo the commits of others",
        SESSION,
        "elif self.transaction.commits > self.commits_before:",
        "elif False:",
    ),
    Mutant(
        "deferred constraints not checked", TRANSACTION, "SET CONSTRAINTS ALL IMMEDIATE", "SELECT 1"
    ),
    Mutant(
        "no lock timeout on SQLite",
        "tests/harness/sqlite.py",
        'LOCK_TIMEOUT = {"timeout": 1}',
        'LOCK_TIMEOUT = {"timeout": 8}',
    ),
    Mutant(
        "no lock timeout on PostgreSQL",
        "tests/harness/postgresql.py",
        '"lock_timeout": "1000"',
        '"lock_timeout": "0"',
    ),
    Mutant(
        "workers wait for the end of the first",
        "tests/harness/postgresql.py",
        'TURN, IN_USE = "hashtext(:name), 0", "hashtext(:name), 1"',
        'TURN, IN_USE = "hashtext(:name), 0", "hashtext(:name), 0"',
    ),
    Mutant(
        "the databases go with the first worker",
        "tests/harness/postgresql.py",
        "SELECT pg_advisory_lock_shared({IN_USE})",
        "SELECT {IN_USE}",
    ),
    Mutant(
        "overrides not restored",
        ISOLATION,
        "dict(app.dependency_overrides)",
        "app.dependency_overrides",
    ),
    Mutant(
        "requests in the task of the test",
        ASGI,
        "                tasks.start_soon(serve)",
        "                await serve()",
    ),
    Mutant(
        "lifespan not run",
        ASGI,
        "    async with app.router.lifespan_context(app) as state:\n"
        "        yield RunningApp(app, dict(state or {}))",
        "    yield RunningApp(app, {})",
    ),
    Mutant(
        "lifespan state shared by all requests",
        ASGI,
        "dict(self.running.lifespan_state)",
        "self.running.lifespan_state",
    ),
    Mutant("an event loop and an engine for each test", "tests/**/*.py", '(scope="session")', ""),
    Mutant(
        "stray tasks not noticed",
        PLUGIN,
        "    stray = asyncio.all_tasks() - before\n",
        "    stray = set()\n",
    ),
    Mutant(
        "hanging tests not cancelled", PLUGIN, "asyncio.timeout(limit)", "asyncio.timeout(None)"
    ),
    Mutant("sync tests not refused", PLUGIN, "            items[index] = refused\n", ""),
    Mutant(
        "the marked test shares the database",
        CONFTEST,
        "        async with databases.copy() as engine:\n            yield OwnDatabase(engine)",
        "        yield OwnDatabase(db_engine)",
    ),
]


def prove(project: Project, directory: Path, *options: str, **env: str) -> tuple[int, str]:
    """Run the proofs in a copy of the project; return exit code and output."""
    return run_tests(project, copied(project, directory), "tests/isolation", *options, **env)


@pytest.fixture(
    params=["sqlite file", "sqlite memory", "postgresql embedded", "postgresql external"]
)
def database(
    request: pytest.FixtureRequest, installed: Installed
) -> tuple[Project, dict[str, str]]:
    """A project, and the environment that makes its tests run on one of the databases."""
    if request.param == "sqlite file":
        return installed("core"), {}
    if request.param == "sqlite memory":
        return installed("core"), {"TEST_DATABASE_URL": "sqlite+aiosqlite://"}
    if request.param == "postgresql embedded":
        return installed("other"), {}
    if EXTERNAL is None or not EXTERNAL.startswith("postgresql"):
        pytest.skip("TEST_DATABASE_URL names no PostgreSQL server")
    return installed("other"), {"TEST_DATABASE_URL": EXTERNAL}


def test_proofs_hold_in_parallel_and_backwards(
    database: tuple[Project, dict[str, str]], tmp_path: Path
) -> None:
    project, env = database
    code, output = prove(project, tmp_path / "copy", "-n", "4", **env)
    assert code == 0, output
    (tmp_path / "copy" / "backwards.py").write_text(BACKWARDS, encoding="utf-8")
    code, output = prove(project, tmp_path / "copy", "-p", "no:randomly", "-p", "backwards", **env)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["core", "other"])
def test_proofs_hold_in_twenty_random_orders(
    installed: Installed, tmp_path: Path, name: str
) -> None:
    copy = copied(installed(name), tmp_path / "copy")
    (copy / "shuffled.py").write_text(TWENTY_TIMES_SHUFFLED, encoding="utf-8")
    options = ("-p", "no:randomly", "-p", "shuffled", "--deselect=tests/isolation/test_guards.py")
    code, output = prove(installed(name), copy, *options)
    assert code == 0, output
    [passed] = re.findall(r"(\d+) passed", output)
    assert int(passed) % 20 == 0
    assert int(passed) >= 20 * 40


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_of_the_harness_is_caught(
    installed: Installed,
    tmp_path: Path,
    mutant: Mutant,
    record_property: Callable[[str, object], None],
) -> None:
    for name in ("core", "other"):
        copy = copied(installed(name), tmp_path / name)
        plant(mutant, copy)
        code, output = prove(installed(name), copy, "-x", "-rfE", "-o", "timeout=10")
        if code != 0 and (caught_by := failures(output)):
            record_property("mutant", f"{mutant.name}: {caught_by[0]} ({name})")
            return
    pytest.fail(f"survived: {mutant.name}\n{output}")
