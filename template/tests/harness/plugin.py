"""What pytest is taught: where the databases are, and to blame the test that is at fault."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, ExitStack
from inspect import isasyncgenfunction, iscoroutine, iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from tests.harness.asgi import being_served
from tests.harness.databases import Databases, configured_url
from tests.harness.postgresql import embedded_databases, embedded_server, server_databases
from tests.harness.sqlite import sqlite_databases

PATIENCE = 0.5
"""The part of its timeout after which a test is cancelled.

Cancelled, it ends like any failed test. What does not heed that, or hangs in a fixture, is
interrupted by pytest-timeout, and with it the event loop of all tests.
"""

LAST_STEPS = 20
"""How often the event loop turns before a task counts as left over: closing takes some turns."""

GRACE = 1.0
"""How long, in seconds, what is about to end may take to do so."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "test_database",
        "what the tests run on without TEST_DATABASE_URL: sqlite (files) "
        "or postgresql (a server that the tests start)",
        default="sqlite",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "own_database: a database for this test alone, with real commits and a real pool, "
        "for what a rolled-back transaction cannot show.",
    )
    needs_server = configured_url() is None and config.getini("test_database") == "postgresql"
    if needs_server and config.getoption("numprocesses", None):
        # The workers share one server; it has to outlive each of them.
        server = ExitStack()
        url = server.enter_context(embedded_server())
        os.environ["TEST_DATABASE_URL"] = url.render_as_string(hide_password=False)
        server.callback(os.environ.pop, "TEST_DATABASE_URL")
        config.add_cleanup(server.close)


@pytest.fixture(scope="session")
async def databases(
    anyio_backend: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Databases]:
    """Where test databases come from: what TEST_DATABASE_URL names, or else pytest.toml."""
    async with open_databases(
        pytestconfig.getini("test_database"), tmp_path_factory.mktemp("databases")
    ) as databases:
        yield databases


def open_databases(kind: str, directory: Path) -> AbstractAsyncContextManager[Databases]:
    """Give the databases that TEST_DATABASE_URL names, else those of `kind`."""
    url = configured_url()
    if url is None and kind == "postgresql":
        return embedded_databases()
    if url is None or url.get_backend_name() == "sqlite":
        return sqlite_databases(url, directory)
    return server_databases(url)


class RefusedItem(pytest.Item):
    """A test that cannot work: it fails with the reason, without setting anything up."""

    refused: pytest.Function
    reason: str

    def runtest(self) -> None:
        """Fail with the reason."""
        pytest.fail(self.reason, pytrace=False)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Say where the test is."""
        return self.refused.reportinfo()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse sync tests that ask for async fixtures.

    Set up for them, such a fixture is an error now and in each later test that shares it:
    https://github.com/pytest-dev/pytest/issues/14800
    """
    for index, item in enumerate(items):
        if not isinstance(item, pytest.Function) or iscoroutinefunction(item.function):
            continue
        if fixtures := async_fixtures(item):
            refused = RefusedItem.from_parent(item.session, name=item.name, nodeid=item.nodeid)
            refused.refused = item
            refused.reason = (
                f"{item.originalname} is a plain function, but its fixture {fixtures[0]!r} is "
                f"async and needs the event loop. Write `async def {item.originalname}`."
            )
            items[index] = refused


def async_fixtures(item: pytest.Function) -> list[str]:
    """Name the async fixtures that a test asks for, itself or through others."""
    definitions = item._fixtureinfo.name2fixturedefs
    names = list(item._fixtureinfo.argnames)
    names += [name for mark in item.iter_markers("usefixtures") for name in mark.args]
    found = []
    for name in names:  # which grows
        for definition in definitions.get(name, ())[-1:]:
            names += [argument for argument in definition.argnames if argument not in names]
            if iscoroutinefunction(definition.func) or isasyncgenfunction(definition.func):
                found.append(name)
    return found


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let an async test fail in its own time: when it hangs, and for the tasks it leaves."""
    backend = pyfuncitem.funcargs.get("anyio_backend")
    name = backend[0] if isinstance(backend, tuple) else backend  # with options, a tuple
    if iscoroutinefunction(pyfuncitem.obj) and name == "asyncio":
        pyfuncitem.obj = watched(pyfuncitem.obj, time_limit(pyfuncitem))
    return (yield)


def time_limit(item: pytest.Function) -> float | None:
    """Return after how many seconds a test is cancelled: none where it has no timeout."""
    marker = item.get_closest_marker("timeout")
    timeout = float(marker.args[0] if marker else item.config.getini("timeout") or 0)
    return timeout * PATIENCE or None


def watched(
    test: Callable[..., Awaitable[None]], limit: float | None
) -> Callable[..., Awaitable[None]]:
    """Wrap a test: raise TimeoutError after `limit` seconds, AssertionError for stray tasks."""

    @functools.wraps(test)
    async def watched_test(**arguments: Any) -> None:
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(limit):
                await test(**arguments)
        finally:
            stray = await cancel_stray_tasks(before)
        if stray:
            raise AssertionError(
                f"The test is over, but not what it started: {', '.join(stray)}. "
                "Await the task, or start it in a task group that ends with its request."
            )

    return watched_test


async def cancel_stray_tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    """Cancel the tasks that are running but were not in `before`; return their names."""
    if being_served:  # a WebSocket or a stream whose client has just gone
        await asyncio.wait(being_served, timeout=GRACE)
    if being_served:  # or one that a fixture holds open: what it started cannot be told apart
        return []
    for _ in range(LAST_STEPS):
        await asyncio.sleep(0)
        stray = asyncio.all_tasks() - before
        if not stray:
            return []
    generators = {task for task in stray if not iscoroutine(task.get_coro())}
    if generators:  # abandoned half-way, which the event loop is closing
        await asyncio.wait(generators, timeout=GRACE)
        stray -= generators
    for task in stray:
        task.cancel()
    if stray:
        ended, _ = await asyncio.wait(stray, timeout=GRACE)  # some do not heed it
        await asyncio.gather(*ended, return_exceptions=True)
    return [getattr(task.get_coro(), "__qualname__", repr(task)) for task in stray]
