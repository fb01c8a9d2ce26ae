"""The pytest plugin: open the databases, and blame the right test."""

import asyncio
import functools
import gc
import os
import sys
import traceback
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from inspect import isasyncgenfunction, iscoroutinefunction, ismethod, signature
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.config import ROOT
from tests.harness import postgresql, sqlite
from tests.harness.databases import Databases, configured_url
from tests.harness.guard import Phase, guard
from tests.harness.isolation import ROLLED_BACK, WAYS
from tests.harness.leftovers import clearing_up, wait_for_closing
from tests.harness.network import working_for_all_tests
from tests.harness.patience import Deadline
from tests.harness.private import (
    fail_again,
    fixture_definitions,
    go_on_after_exits,
    keep_real_time,
    leave_cancelled_scopes,
)
from tests.harness.tracebacks import close_coroutines, explain
from tests.harness.transaction import RolledBackTransaction
from tests.harness.variables import Variables

PATIENCE = 0.5
"""The share of the timeout after which a test, or the teardown of a fixture, is cancelled.

It then ends like any failed test. The setup of a fixture has the whole timeout: pytest-timeout
interrupts it, but only once per test.
"""

CANCELLED = (
    "The {} was cancelled by a task group, timeout or WebSocket that was entered and not left. "
    "Use `async with`, which leaves it."
)

NEEDED_BY_ALL = {
    "databases",
    "db_engine",
    "settings",
    "rolled_back_transaction",
    "running_app",
    "standalone_app",
}
"""The fixtures that all tests need; if one fails, it is reported once, not for each test."""

OWN_PATIENCE = {"isolation", "cleared_up"}
"""The fixtures that end leftovers, and limit their own time for it."""

TIME_LIMIT = pytest.StashKey[float | None]()
"""The time limit of a test, and of its fixtures that are torn down after it."""
LONGEST_LIMIT = pytest.StashKey[float]()
"""The longest time limit so far; it applies to fixtures that tests share."""
FAILED = pytest.StashKey[bool]()
VARIABLES = pytest.StashKey[Variables]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addini(
        "test_database",
        "the database of the tests if TEST_DATABASE_URL is not set: sqlite (files) "
        "or postgresql (a server that the tests start)",
        default="sqlite",
    )
    parser.addini(
        "test_isolation",
        "how tests without a marker are isolated: rolled_back or committed",
        default=ROLLED_BACK,
    )
    parser.addini(
        "downgrade_to",
        "the oldest revision that the tests downgrade to",
        default="base",
    )
    config: Any = pluginmanager.get_plugin("pytestconfig")
    url = worker_url(config.getini("test_database"))
    set_environment(url.render_as_string(hide_password=False))
    guard.database = Path(str(url.database)).name
    configured = configured_url()
    guard.configured = str(configured.database) if configured else ""


def set_environment(database_url: str) -> None:
    """Replace the developer's environment with .env.example and the test database.

    All code that reads settings gets these values, even on import. Variables of settings with a
    default are removed, so that the defaults apply.
    """
    example = dotenv_values(ROOT / ".env.example")
    values = {name: value for name, value in example.items() if value is not None}
    values |= {"ENVIRONMENT": "test", "DATABASE_URL": database_url}
    values.pop("TEST_DATABASE_URL", None)  # whoever runs the tests decides
    os.environ |= values
    # If asyncpg is cancelled while it negotiates TLS, it leaves an error that nobody awaits, and
    # the harness would blame a test.
    os.environ.setdefault("PGSSLMODE", "allow")
    from app.settings import Settings

    for name in os.environ.keys() - {"ENVIRONMENT", "DATABASE_URL"}:
        field = Settings.model_fields.get(name.lower())
        if field and not (name in values and field.is_required()):
            del os.environ[name]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "committed: commits of the test are real; the database is cleaned up afterwards."
    )
    config.addinivalue_line(
        "markers", "rolled_back: the test is rolled back, even if test_isolation is committed."
    )
    config.addinivalue_line("markers", "own_database: the old name of `committed`.")
    if config.getini("test_isolation") not in WAYS:
        raise pytest.UsageError("test_isolation in pytest.toml must be rolled_back or committed.")
    watching = ExitStack()
    watching.enter_context(guard.watching())
    config.add_cleanup(watching.close)
    needs_server = configured_url() is None and config.getini("test_database") == "postgresql"
    if needs_server and config.getoption("numprocesses", None):
        # The workers share one server, which must outlive them all.
        server = ExitStack()
        url = server.enter_context(postgresql.embedded_server())
        os.environ["TEST_DATABASE_URL"] = url.render_as_string(hide_password=False)
        server.callback(os.environ.pop, "TEST_DATABASE_URL")
        config.add_cleanup(server.close)


# ---- Databases ----


@pytest.fixture(scope="session")
async def databases(anyio_backend: str, pytestconfig: pytest.Config) -> AsyncIterator[Databases]:
    """The test databases that TEST_DATABASE_URL or pytest.toml asks for."""
    async with open_databases(pytestconfig.getini("test_database")) as databases:
        yield databases


def open_databases(kind: str) -> AbstractAsyncContextManager[Databases]:
    """Yield the databases in TEST_DATABASE_URL, or else those of `kind`."""
    url = configured_url()
    if url is None and kind == "postgresql":
        return postgresql.embedded_databases()
    if url is None or url.get_backend_name() == "sqlite":
        return sqlite.sqlite_databases(url)
    return postgresql.server_databases(url)


def worker_url(kind: str) -> URL:
    """Return the URL of the worker's database."""
    url = configured_url()
    if kind == "sqlite" if url is None else url.get_backend_name() == "sqlite":
        return sqlite.worker_url(url)
    return postgresql.worker_url(url)


@pytest.fixture(scope="session")
async def rolled_back_transaction(
    db_engine: AsyncEngine,
) -> AsyncIterator[RolledBackTransaction]:
    """The transaction that each test runs in."""
    transaction = RolledBackTransaction(db_engine, guard)
    await transaction.connect()  # tasks of the lifespan need it; they wait for a test
    yield transaction
    for engine in guard.engines - transaction.own_engines:  # of tests without fixtures
        await AsyncEngine(engine).dispose()
    await transaction.disconnect()


@pytest.fixture
async def cleared_up(anyio_backend_name: str) -> AsyncIterator[None]:
    """End what a test without a database leaves running, and blame the test."""
    if anyio_backend_name != "asyncio":
        yield
        return
    async with clearing_up(guard.refusals):
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exclude all that was imported from garbage collection, which then takes less time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave out Hypothesis's summary if no test has used it: the summary imports the library."""
    if "hypothesis" not in sys.modules:
        session.config.pluginmanager.unregister(name="hypothesispytest")


# ---- Refuse tests that cannot work ----


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let a module fail that exits on import, as `app.main` does without its settings."""
    try:
        return (yield)
    except SystemExit as error:
        return pytest.CollectReport(collector.nodeid, "failed", describe(error), [])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Isolate tests that have a marker, even without fixtures; clean up after all others."""
    refuse_hidden_fixtures(items)
    for item in items:
        if isinstance(item, pytest.Function) and "anyio_backend" in item.fixturenames:
            marked = any(item.get_closest_marker(name) for name in WAYS)
            surround(item, "isolation" if marked or is_isolated(item) else "cleared_up")


def refuse_hidden_fixtures(items: list[pytest.Item]) -> None:
    """Raise UsageError for a fixture in tests/ that tests/conftest.py overrides."""
    for item in items:
        definitions = fixture_definitions(item) if isinstance(item, pytest.Function) else {}
        for name, found in definitions.items():
            *others, closest = [definition.func.__module__ for definition in found]
            own = [module for module in others if module.startswith("tests.")]
            if closest == "tests.conftest" and own:
                raise pytest.UsageError(
                    f"The fixture {name!r} in {own[0]} has no effect, because tests/conftest.py "
                    "defines one too. Move yours to a conftest.py next to the tests that need it, "
                    "such as tests/orders/conftest.py."
                )


def surround(item: pytest.Function, fixture: str) -> None:
    """Set up `fixture` before all other function-scoped fixtures, and tear it down after them."""
    definitions, names = fixture_definitions(item), item.fixturenames
    if fixture in names:
        names.remove(fixture)
    of_the_test = [
        index
        for index, name in enumerate(names)
        if name in definitions and definitions[name][-1].scope == "function"
    ]
    names.insert(min(of_the_test, default=len(names)), fixture)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start with new context variables. Fail sync tests that use async fixtures.

    Such a fixture would fail now, and in each later test that shares it:
    https://github.com/pytest-dev/pytest/issues/14800
    """
    item.stash[VARIABLES] = Variables()
    if not isinstance(item, pytest.Function) or is_async(item):
        return
    if fixtures := async_fixtures(item):
        pytest.fail(
            f"{item.originalname} is not async, but its fixture {fixtures[0]!r} is, and needs the "
            f"event loop. Write `async def {item.originalname}`.",
            pytrace=False,
        )


def is_async(item: pytest.Item) -> bool:
    """Return whether a test runs in the event loop, including tests of Hypothesis."""
    test = getattr(item, "obj", None)
    inner = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    return iscoroutinefunction(inner)


def is_isolated(item: pytest.Item) -> bool:
    """Return whether a test uses the `isolation` fixture."""
    return "isolation" in getattr(item, "fixturenames", ())


def async_fixtures(item: pytest.Function) -> list[str]:
    """Return the async fixtures that a test uses, directly or through others."""
    definitions = fixture_definitions(item)
    names = list(signature(item.function).parameters)
    names += [name for mark in item.iter_markers("usefixtures") for name in mark.args]
    found = []
    for name in names:  # the loop extends it
        for definition in definitions.get(name, ())[-1:]:
            names += [argument for argument in definition.argnames if argument not in names]
            if iscoroutinefunction(definition.func) or isasyncgenfunction(definition.func):
                found.append(name)
    return found


# ---- Blame ----


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Note the timeout that pytest-timeout uses, from an option, variable, marker or setting."""
    limit = settings.timeout * PATIENCE
    item.stash[TIME_LIMIT] = limit
    stash = item.config.stash
    stash[LONGEST_LIMIT] = max(limit, stash.get(LONGEST_LIMIT, 0.0))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: Any, request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Guard the database from a fixture whose writes would not be undone; survive its failure.

    If a fixture that all tests need fails, print a short message and end the run.
    """
    is_of_a_test = fixturedef.scope == "function" and fixturedef.argname != "isolation"
    fixture = fixturedef.func
    if "anyio_backend" in request.fixturenames:
        run = running_in_variables(request.node) if fixturedef.scope == "function" else run_for_all
        fixturedef.func = surviving(
            fixture, run, functools.partial(limit_of, fixturedef, request.config)
        )
    try:
        if not is_of_a_test or guard.phase is not Phase.FIXTURES:
            return (yield)
        with guard.test_in(Phase.NO_DATABASE):
            return (yield)
    except Exception as error:
        if fixturedef.argname not in NEEDED_BY_ALL:
            raise
        request.session.shouldfail = f"All tests need the fixture {fixturedef.argname!r}."
        failure = pytest.fail.Exception(describe(error), pytrace=False)
        if fixturedef.scope == "session":
            fail_again(fixturedef, failure)
        raise failure from None
    finally:
        fixturedef.func = fixture


def describe(error: BaseException) -> str:
    """Describe an error in a few lines, with its location in the project."""
    cause = error.__cause__ if isinstance(error.__cause__, SystemExit) else error
    places = [
        f"{Path(frame.filename).relative_to(ROOT)}, line {frame.lineno}"
        for frame in traceback.extract_tb(cause.__traceback__)
        if Path(frame.filename).is_relative_to(ROOT)
        and not Path(frame.filename).is_relative_to(Path(__file__).parent)
        and ".venv" not in frame.filename
    ]
    return "\n".join(
        [
            f"{type(cause).__name__}: {cause}",
            *(f"in {place}" for place in places[-1:]),
            *getattr(cause, "__notes__", ()),
        ]
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the database from a test that uses none of its fixtures."""
    if is_isolated(item):
        return (yield)
    with guard.test_in(Phase.NO_DATABASE):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test has failed; add the refusals to its error, and shorten the traceback."""
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        item.stash[FAILED] = True
        note_refusals(call.excinfo.value)
        explain(call.excinfo.value)
        close_coroutines()
    return (yield)


def note_refusals(error: BaseException) -> None:
    """Add the refusals of a test to an error, unless it contains them already."""
    for reason in dict.fromkeys(guard.refusals):
        if reason not in str(error):
            error.add_note(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test for its refusals, even if the application has swallowed them."""
    item.config.stash[TIME_LIMIT] = item.stash.get(TIME_LIMIT, None)
    try:
        result = yield
    except Exception as error:
        note_refusals(error)
        raise
    finally:
        reasons = list(dict.fromkeys(guard.refusals))
        guard.refusals.clear()
    if reasons and not item.stash.get(FAILED, False):
        pytest.fail("\n".join(reasons), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let an async test that hangs fail at its time limit, and let other tests survive it."""
    if iscoroutinefunction(pyfuncitem.obj) and is_on_asyncio(pyfuncitem.funcargs):
        limit = pyfuncitem.stash.get(TIME_LIMIT, None)
        pyfuncitem.obj = watched(pyfuncitem.obj, running_in_variables(pyfuncitem), limit)
    return (yield)


def is_on_asyncio(arguments: Mapping[str, Any]) -> bool:
    """Return whether a test or a fixture with these arguments runs on asyncio."""
    backend = arguments.get("anyio_backend")
    return (backend[0] if isinstance(backend, tuple) else backend) == "asyncio"


Run = Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]


def running_in_variables(item: pytest.Item) -> Run:
    """Return a function that runs a coroutine with the context variables of a test."""
    variables = item.stash[VARIABLES]
    variables.note()
    return variables.run


async def run_for_all(coroutine: Coroutine[Any, Any, Any]) -> object:
    """Run a coroutine of a fixture that tests share."""
    with working_for_all_tests():
        return await coroutine


def watched(
    test: Callable[..., Coroutine[Any, Any, None]], run: Run, limit: float | None
) -> Callable[..., Awaitable[None]]:
    """Wrap a test: raise TimeoutError after `limit` seconds, and let other tests survive it."""

    @functools.wraps(test)
    async def watched_test(**arguments: Any) -> None:
        before = asyncio.all_tasks()
        coroutine = run(test(**arguments))
        deadline = Deadline("test", coroutine, limit)
        with survived("test"):
            async with deadline:
                await coroutine
            await asyncio.sleep(0)  # lets the event loop start to close abandoned generators
            await wait_for_closing(before)

    return watched_test


def report_exit(error: SystemExit) -> None:
    """Blame the current test for a task that would have ended the run."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    guard.refusals.append(
        f"A task raised {error!r}, which would end the run: {place.filename}, line {place.lineno}."
    )
    # If the garbage collector shows the traceback while pytest parses, CPython can crash:
    # https://github.com/python/cpython/issues/106905
    error.__traceback__ = None


@contextmanager
def survived(what: str) -> Iterator[None]:
    """Let a test or a fixture fail instead of ending the event loop of all tests."""
    with suppress(RuntimeError):  # on trio
        loop = asyncio.get_running_loop()
        go_on_after_exits(loop, report_exit)
        keep_real_time(loop)
    try:
        yield
    except SystemExit as error:
        raise AssertionError(f"The {what} raised {error!r}.") from error
    except asyncio.CancelledError as error:
        if leave_cancelled_scopes():
            raise AssertionError(CANCELLED.format(what)) from error
        raise AssertionError(f"The {what} awaits a task that was cancelled.") from error


def limit_of(fixture: Any, config: pytest.Config) -> float | None:
    """Return how many seconds a fixture may take to end, or None if it limits itself."""
    if fixture.argname in OWN_PATIENCE:
        return None
    if fixture.scope == "function":
        return config.stash.get(TIME_LIMIT, None)
    return config.stash.get(LONGEST_LIMIT, None)


def surviving(
    fixture: Callable[..., Any], run: Run, find_limit: Callable[[], float | None]
) -> Callable[..., Any]:
    """Wrap an async fixture so that other tests survive if it raises or hangs.

    `run` runs its coroutines. `find_limit` returns how many seconds it may take to end.
    """
    if ismethod(fixture):
        function = surviving(fixture.__func__, run, find_limit)
        method: Callable[..., Any] = function.__get__(fixture.__self__)
        return method
    if isasyncgenfunction(fixture):

        @functools.wraps(fixture)
        async def surviving_generator(*values: Any, **arguments: Any) -> AsyncIterator[Any]:
            with survived("fixture"):
                context = asynccontextmanager(fixture)(*values, **arguments)
                yield await run(context.__aenter__())
                leave = run(context.__aexit__(None, None, None))
                async with Deadline("fixture", leave, find_limit()):
                    await leave

        return surviving_generator
    if iscoroutinefunction(fixture):

        @functools.wraps(fixture)
        async def surviving_coroutine(*values: Any, **arguments: Any) -> object:
            with survived("fixture"):
                return await run(fixture(*values, **arguments))

        return surviving_coroutine
    return fixture
