"""What pytest is taught: where the databases are, and to blame the test that is at fault."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, ExitStack
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness import postgresql, sqlite
from tests.harness.databases import Databases, configured_url
from tests.harness.guard import Phase, guard
from tests.harness.isolation import ROLLED_BACK, STRAY_TASKS, WAYS
from tests.harness.leftovers import end_tasks
from tests.harness.patience import Deadline
from tests.harness.private import fixture_definitions
from tests.harness.transaction import RolledBackTransaction

PATIENCE = 0.5
"""The part of its timeout after which a test is cancelled.

Cancelled, it ends like any failed test. What does not heed that, or hangs in a fixture, is
interrupted by pytest-timeout, and with it the event loop of all tests.
"""

TIME_LIMIT = pytest.StashKey[float]()
FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addini(
        "test_database",
        "what the tests run on without TEST_DATABASE_URL: sqlite (files) "
        "or postgresql (a server that the tests start)",
        default="sqlite",
    )
    parser.addini(
        "test_isolation",
        "how the tests are kept apart that have no marker for it: rolled_back or committed",
        default=ROLLED_BACK,
    )
    # From now on, and before the application is imported: whoever asks the environment where the
    # data is, is told the tests' database.
    config: Any = pluginmanager.get_plugin("pytestconfig")
    url = worker_url(config.getini("test_database"))
    os.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
    guard.database = Path(str(url.database)).name
    configured = configured_url()
    guard.configured = str(configured.database) if configured else ""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "committed: the test's commits are real; the database is cleaned afterwards."
    )
    config.addinivalue_line(
        "markers", "rolled_back: the test is rolled back, where test_isolation says committed."
    )
    config.addinivalue_line("markers", "own_database: the name of `committed` in 0.1.0.")
    if config.getini("test_isolation") not in WAYS:
        raise pytest.UsageError("test_isolation, in pytest.toml, is rolled_back or committed.")
    watching = ExitStack()
    watching.enter_context(guard.watching())
    config.add_cleanup(watching.close)
    needs_server = configured_url() is None and config.getini("test_database") == "postgresql"
    if needs_server and config.getoption("numprocesses", None):
        # The workers share one server; it has to outlive each of them.
        server = ExitStack()
        url = server.enter_context(postgresql.embedded_server())
        os.environ["TEST_DATABASE_URL"] = url.render_as_string(hide_password=False)
        server.callback(os.environ.pop, "TEST_DATABASE_URL")
        config.add_cleanup(server.close)


# ---- Databases ----


@pytest.fixture(scope="session")
async def databases(anyio_backend: str, pytestconfig: pytest.Config) -> AsyncIterator[Databases]:
    """Where test databases come from: what TEST_DATABASE_URL names, or else pytest.toml."""
    async with open_databases(pytestconfig.getini("test_database")) as databases:
        yield databases


def open_databases(kind: str) -> AbstractAsyncContextManager[Databases]:
    """Give the databases that TEST_DATABASE_URL names, else those of `kind`."""
    url = configured_url()
    if url is None and kind == "postgresql":
        return postgresql.embedded_databases()
    if url is None or url.get_backend_name() == "sqlite":
        return sqlite.sqlite_databases(url)
    return postgresql.server_databases(url)


def worker_url(kind: str) -> URL:
    """Return the URL of the worker's database among those."""
    url = configured_url()
    if kind == "sqlite" if url is None else url.get_backend_name() == "sqlite":
        return sqlite.worker_url(url)
    return postgresql.worker_url(url)


@pytest.fixture(scope="session")
async def rolled_back_transaction(
    db_engine: AsyncEngine,
) -> AsyncIterator[RolledBackTransaction]:
    """The transaction that the tests take part in, one after the other."""
    transaction = RolledBackTransaction(db_engine, guard)
    await transaction.connect()  # for what the lifespan has started, which then waits for a test
    yield transaction
    for engine in guard.engines - transaction.own_engines:  # of tests without fixtures
        await AsyncEngine(engine).dispose()
    await transaction.disconnect()


# ---- Tests that cannot work ----


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Isolate also the marked tests that ask for no fixture."""
    for item in items:
        marked = any(item.get_closest_marker(name) for name in WAYS)
        if marked and is_async(item) and not is_isolated(item):
            item.fixturenames.append("isolation")  # type: ignore[attr-defined]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse sync tests that ask for async fixtures, before anything is set up.

    Set up for them, such a fixture is an error now and in each later test that shares it:
    https://github.com/pytest-dev/pytest/issues/14800
    """
    if not isinstance(item, pytest.Function) or is_async(item):
        return
    if fixtures := async_fixtures(item):
        pytest.fail(
            f"{item.originalname} is a plain function, but its fixture {fixtures[0]!r} is async "
            f"and needs the event loop. Write `async def {item.originalname}`.",
            pytrace=False,
        )


def is_async(item: pytest.Item) -> bool:
    """Say whether a test runs on the event loop, also one of Hypothesis'."""
    test = getattr(item, "obj", None)
    inner = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    return iscoroutinefunction(inner)


def is_isolated(item: pytest.Item) -> bool:
    """Say whether a test asks for the fixture that keeps it apart."""
    return "isolation" in getattr(item, "fixturenames", ())


def async_fixtures(item: pytest.Function) -> list[str]:
    """Name the async fixtures that a test asks for, itself or through others."""
    definitions = fixture_definitions(item)
    names = list(signature(item.function).parameters)
    names += [name for mark in item.iter_markers("usefixtures") for name in mark.args]
    found = []
    for name in names:  # which grows
        for definition in definitions.get(name, ())[-1:]:
            names += [argument for argument in definition.argnames if argument not in names]
            if iscoroutinefunction(definition.func) or isasyncgenfunction(definition.func):
                found.append(name)
    return found


# ---- Blame ----


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Note what pytest-timeout has found out: option, variable, marker or configuration."""
    item.stash[TIME_LIMIT] = settings.timeout * PATIENCE


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object],
) -> Generator[None, object, object]:
    """Guard the database from a fixture of one test that nothing undoes."""
    is_of_a_test = fixturedef.scope == "function" and fixturedef.argname != "isolation"
    if not is_of_a_test or guard.phase is not Phase.FIXTURES:
        return (yield)
    with guard.test_in(Phase.NO_DATABASE):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the database from a test that has none of its fixtures."""
    if is_isolated(item):
        return (yield)
    with guard.test_in(Phase.NO_DATABASE):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test has failed: it need not be told twice why."""
    item.stash[FAILED] = item.stash.get(FAILED, False) or call.excinfo is not None
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test for what it was refused, also where the application has swallowed it."""
    try:
        result = yield
    finally:
        reasons = list(dict.fromkeys(guard.refusals))
        guard.refusals.clear()
    if reasons and not item.stash.get(FAILED, False):
        pytest.fail("\n".join(reasons), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let an async test fail in its own time: when it hangs, and for the tasks it leaves."""
    backend = pyfuncitem.funcargs.get("anyio_backend")
    name = backend[0] if isinstance(backend, tuple) else backend  # with options, a tuple
    if iscoroutinefunction(pyfuncitem.obj) and name == "asyncio":
        limit = pyfuncitem.stash.get(TIME_LIMIT, None)
        clears_up = not is_isolated(pyfuncitem)  # or else the fixture does
        pyfuncitem.obj = watched(pyfuncitem.obj, limit, clears_up)
    return (yield)


def watched(
    test: Callable[..., Coroutine[Any, Any, None]], limit: float | None, clears_up: bool
) -> Callable[..., Awaitable[None]]:
    """Wrap a test: raise TimeoutError after `limit` seconds, and where it `clears_up`, blame it."""

    @functools.wraps(test)
    async def watched_test(**arguments: Any) -> None:
        before = asyncio.all_tasks()
        coroutine = test(**arguments)
        deadline = Deadline(coroutine, limit)
        try:
            async with deadline:
                await coroutine
        except SystemExit as error:  # which would end the event loop of all tests
            raise AssertionError(f"The test raised {error!r}") from error
        except asyncio.CancelledError as error:  # which would, too
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise AssertionError("The test awaits what was cancelled.") from error
        finally:
            if clears_up and (stray := await end_tasks(before)):
                guard.refusals.append(STRAY_TASKS.format(", ".join(stray)))

    return watched_test
