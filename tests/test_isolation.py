"""The proofs of isolation pass wherever they can run, and need each part of the harness."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants import Mutant, copied, pytest_of, run_tests, run_with
from tests.rendering import Project, run
from tests.test_faulty import deviations

# Read before the environment is cleaned: an external server, as teams have in CI.
EXTERNAL = os.environ.get("TEST_DATABASE_URL")
BACKWARDS = "def pytest_collection_modifyitems(items): items.reverse()"
# One process for all orders: whatever one leaves behind shows in the next.
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
ISOLATION = "tests/harness/isolation.py"
GUARD = "tests/harness/guard.py"
STATEMENTS = "tests/harness/statements.py"
APPLICATION = "tests/harness/application.py"
LEFTOVERS = "tests/harness/leftovers.py"
PATIENCE = "tests/harness/patience.py"
OBJECTS = "tests/harness/objects.py"
ASGI = "tests/harness/asgi.py"
NETWORK = "tests/harness/network.py"
PLUGIN = "tests/harness/plugin.py"
VARIABLES = "tests/harness/variables.py"
SQLITE = "tests/harness/sqlite.py"
POSTGRESQL = "tests/harness/postgresql.py"
DATABASE = "app/core/database.py"
ROLLED_BACK_SESSIONS = "        return app.bound_to(self.engine, self.info_for(app))\n"

MUTANTS = [
    Mutant("no rollback", TRANSACTION, "await outermost.rollback()", "await outermost.commit()"),
    Mutant(
        "sessions not bound to the transaction",
        ISOLATION,
        ROLLED_BACK_SESSIONS,
        "        return app.bound_to(app.engine)\n",
    ),
    Mutant(
        "only the dependency overridden",
        ISOLATION,
        ROLLED_BACK_SESSIONS,
        "        async def session():\n"
        "            async with async_sessionmaker(self.engine)() as session:\n"
        "                yield session\n"
        "        from app.core.database import get_session\n"
        "        app.app.dependency_overrides[get_session] = session\n"
        "        return app.bound_to(app.engine)\n",
    ),
    Mutant(
        "one session for test and application",
        ISOLATION,
        ROLLED_BACK_SESSIONS,
        "        session = async_sessionmaker(self.engine)()\n"
        "        from app.core.database import get_session\n"
        "        app.app.dependency_overrides[get_session] = lambda: session\n"
        "        return app.bound_to(self.engine, self.info_for(app))\n",
    ),
    Mutant("no real BEGIN", DATABASE, '        "begin": begin_sqlite_transaction,\n', ""),
    Mutant("foreign keys not enforced", DATABASE, "foreign_keys = ON", "foreign_keys = OFF"),
    Mutant(
        "a rollback undoes nothing",
        TRANSACTION,
        "                if undo:\n",
        "                if False:\n",
    ),
    Mutant(
        "readers keep the savepoint",
        TRANSACTION,
        "self._holder_has_written |= effect.has_to_be_undone",
        "self._holder_has_written = True",
    ),
    Mutant(
        "writers give the savepoint up",
        TRANSACTION,
        "self._holder_has_written |= effect.has_to_be_undone",
        "self._holder_has_written = False",
    ),
    Mutant(
        "a comment before SELECT is a write",
        STATEMENTS,
        '    bare = COMMENTS.sub(" ", statement)\n',
        "    bare = statement\n",
    ),
    Mutant(
        "waiting in vain for an own transaction",
        TRANSACTION,
        "        if is_own or not await",
        "        if not await",
    ),
    Mutant(
        "statements are not kept apart",
        TRANSACTION,
        "        self._statement = asyncio.Lock()",
        "        self._statement = asyncio.Semaphore(100)",
    ),
    Mutant(
        "requests do not take turns",
        ISOLATION,
        "                    await self._turn.acquire()\n",
        "                    self._turn = asyncio.Lock(); await self._turn.acquire()\n",
    ),
    Mutant(
        "a request waits for one that it made itself",
        ASGI,
        " and not in_request.get()",
        "",
    ),
    Mutant(
        "an endless stream keeps its turn",
        ASGI,
        "                if is_start_of_stream(message):",
        "                if False:",
    ),
    Mutant(
        "settings outlive their transaction",
        TRANSACTION,
        "        if self._holder_has_set:",
        "        if False:",
    ),
    Mutant(
        "uncommitted writes of the test not noticed",
        ISOLATION,
        "        if self._transaction.is_held_by_test or",
        "        if",
    ),
    Mutant(
        "objects of the test not kept up to date",
        OBJECTS,
        '        "after_commit": changes.show,\n',
        "",
    ),
    Mutant(
        "the transaction may be ended by a statement",
        TRANSACTION,
        "        if effect.ends_transaction:",
        "        if False:",
    ),
    Mutant(
        "isolation levels are passed over",
        TRANSACTION,
        '"set_deferrable"), refuse)',
        '"set_deferrable"), do_nothing)',
    ),
    Mutant(
        "other engines are not refused",
        GUARD,
        "        if self.phase is Phase.ROLLED_BACK:",
        "        if False:",
    ),
    Mutant(
        "tests without fixtures are not refused",
        GUARD,
        "        if self.phase is Phase.NO_DATABASE:",
        "        if False:",
    ),
    Mutant(
        "other databases are not refused",
        GUARD,
        "        is_own = RUN_ID in str(name) or str(name) == self.configured\n",
        "        is_own = True\n",
    ),
    Mutant(
        "the environment names the developer's database",
        PLUGIN,
        '    values |= {"ENVIRONMENT": "test", "DATABASE_URL": database_url}\n',
        '    values |= {"ENVIRONMENT": "test"}\n',
    ),
    Mutant("refusals are forgotten", GUARD, "        self.refusals.append(reason)\n", ""),
    Mutant(
        "deferred constraints not checked", TRANSACTION, "SET CONSTRAINTS ALL IMMEDIATE", "SELECT 1"
    ),
    Mutant(
        "committed rows are not deleted on PostgreSQL",
        POSTGRESQL,
        "                    await connection.exec_driver_sql(statement)\n",
        "                    pass\n",
    ),
    Mutant(
        "rows of migrations are not compared on SQLite",
        SQLITE,
        "            return {name: rows(database, name) for name in filled} == before.rows\n",
        "            return True\n",
    ),
    Mutant(
        "rows of migrations are not compared on PostgreSQL",
        POSTGRESQL,
        '                if (now["schema"], now["rows"]) != (before["schema"], before["rows"]):',
        '                if now["schema"] != before["schema"]:',
    ),
    Mutant(
        "the schema is not put back",
        "tests/harness/*.py",
        "            await self._databases.replace()\n",
        "",
    ),
    Mutant(
        "numbers go on after a committed test",
        POSTGRESQL,
        "    begun = [oid for oid, table in sequences.items() if table is None or table in tables]",
        "    begun = []",
    ),
    Mutant("a task may exit", "tests/harness/private.py", "report(error)", "raise"),
    Mutant(
        "a fixture may exit",
        PLUGIN,
        "        fixturedef.func = surviving(\n",
        "        surviving(\n",
    ),
    Mutant(
        "forgotten scopes are not left",
        "tests/harness/leftovers.py",
        "        if leave_scopes(scope):",
        "        if False:",
    ),
    Mutant(
        "what fixtures have stored is not kept",
        ISOLATION,
        "            await self._databases.keep()\n",
        "",
    ),
    Mutant(
        "session state outlives a committed test",
        ISOLATION,
        "() if guard.connection_in_doubt else keep",
        "keep",
    ),
    Mutant(
        "open transactions are not closed",
        ISOLATION,
        "            await close(connection)\n",
        "            pass\n",
    ),
    Mutant(
        "workers wait for the end of the first",
        POSTGRESQL,
        'TURN, IN_USE = "hashtext(:name), 0", "hashtext(:name), 1"',
        'TURN, IN_USE = "hashtext(:name), 0", "hashtext(:name), 0"',
    ),
    Mutant(
        "the databases go with the first worker",
        POSTGRESQL,
        "SELECT pg_advisory_lock_shared({IN_USE})",
        "SELECT {IN_USE}",
    ),
    Mutant(
        "the application is not restored",
        APPLICATION,
        "            for undo in restore:\n",
        "            for undo in ():\n",
    ),
    Mutant(
        "requests in the task of the test",
        ASGI,
        "        task = asyncio.create_task(serve())\n",
        "        result = await serve()\n"
        "        task = asyncio.get_running_loop().create_future()\n"
        "        task.set_result(result)\n",
    ),
    Mutant(
        "lifespan not run",
        APPLICATION,
        "    async with app.router.lifespan_context(app) as state:\n",
        "    state = {}\n    if True:\n",
    ),
    Mutant(
        "lifespan state shared by all requests",
        ASGI,
        "dict(self.running.lifespan_state)",
        "self.running.lifespan_state",
    ),
    Mutant("an event loop and an engine for each test", "tests/**/*.py", '(scope="session")', ""),
    Mutant(
        "stray tasks not noticed", LEFTOVERS, "for task in find() if not", "for task in () if not"
    ),
    Mutant(
        "hanging tests not cancelled",
        PATIENCE,
        "        await run_for(limit)\n",
        "        await asyncio.Event().wait()\n",
    ),
    Mutant(
        "a test that swallows its cancellation goes on",
        PATIENCE,
        "        close(self._coroutine)\n",
        "",
    ),
    Mutant(
        "a test may exit",
        PLUGIN,
        "    except SystemExit as error:",
        "    except ZeroDivisionError as error:",
    ),
    Mutant(
        "a test leaves context variables",
        VARIABLES,
        "await run_in(self._context, awaited)",
        "await awaited",
    ),
    Mutant(
        "context variables of sync fixtures are not seen",
        VARIABLES,
        "self._noted[variable] = value",
        "pass",
    ),
    Mutant("timers stop with the clock", PLUGIN, "        keep_real_time(loop)\n", ""),
    Mutant(
        "a fixture may take for ever to end",
        PLUGIN,
        'Deadline("fixture", leave, find_limit())',
        'Deadline("fixture", leave, None)',
    ),
    Mutant(
        "sync tests not refused", PLUGIN, "    if fixtures := async_fixtures(item):", "    if 0:"
    ),
    Mutant(
        "the marker is passed over", ISOLATION, "    if way is Phase.COMMITTED:", "    if False:"
    ),
    Mutant("the network is open", NETWORK, "    watch()  # before", "    # before"),
    Mutant(
        "tests are blamed for the lifespan's tasks",
        NETWORK,
        "self.is_setting_up_for_all or for_all_tests.get()",
        "self.is_setting_up_for_all",
    ),
    Mutant(
        "tests are blamed for the lifespan's threads",
        NETWORK,
        "threading.current_thread() not in self.threads_before",
        "True",
    ),
]


def prove(project: Project, directory: Path, *options: str, **env: str) -> tuple[int, str]:
    """Run the proofs in a copy of the project; return the exit code and the output."""
    return run_tests(project, copied(project, directory), "tests/isolation", *options, **env)


@pytest.fixture(params=["sqlite", "postgresql embedded", "postgresql external"])
def database(
    request: pytest.FixtureRequest, installed: Installed
) -> tuple[Project, dict[str, str]]:
    """A project, and the environment for its tests to run on one of the databases."""
    if request.param == "sqlite":
        return installed("core"), {}
    if request.param == "postgresql embedded":
        return installed("other"), {}
    if EXTERNAL is None or not EXTERNAL.startswith("postgresql"):
        pytest.skip("TEST_DATABASE_URL names no PostgreSQL server")
    return installed("other"), {"TEST_DATABASE_URL": EXTERNAL}


@pytest.mark.ci
def test_proofs_hold_by_four_workers_and_backwards(
    database: tuple[Project, dict[str, str]], tmp_path: Path
) -> None:
    project, env = database
    code, output = prove(project, tmp_path / "copy", "-n", "4", **env)
    assert code == 0, output
    (tmp_path / "copy" / "backwards.py").write_text(BACKWARDS, encoding="utf-8")
    code, output = prove(project, tmp_path / "copy", "-p", "no:randomly", "-p", "backwards", **env)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", ["core", "other"])
def test_proofs_hold_in_twenty_random_orders(
    installed: Installed, tmp_path: Path, name: str
) -> None:
    copy = copied(installed(name), tmp_path / "copy")
    (copy / "shuffled.py").write_text(TWENTY_TIMES_SHUFFLED, encoding="utf-8")
    options = ("-p", "no:randomly", "-p", "shuffled")
    command = (*pytest_of(installed(name)), "tests/isolation", *options)
    done = run(*command, cwd=copy, timeout=900)
    output = done.stdout
    assert done.returncode == 0, output
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
        options = ("-o", "timeout=10", "tests/isolation")
        code, output, caught_by = run_with(mutant, installed(name), tmp_path / name, *options)
        if code == 0:
            caught_by = deviations(installed(name), tmp_path / name)
        if caught_by:
            record_property("mutant", f"{mutant.name}: {caught_by[0]} ({name})")
            return
    pytest.fail(f"survived: {mutant.name}\n{output}")
