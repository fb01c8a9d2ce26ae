"""The private APIs of other packages that the harness uses.

`tests/isolation/test_private.py` notices when they change.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import thread as pools
from inspect import iscoroutine
from typing import Any

import anyio
import pytest
import sqlalchemy
from anyio._backends import _asyncio as anyio_on_asyncio

from tests.harness.patience import GRACE

SQLALCHEMY = sqlalchemy.__path__[0]

CANCELLATIONS = 3
"""How often an interrupted test is cancelled: its cleanup may hang too."""


def is_closing(task: asyncio.Task[Any]) -> bool:
    """Return whether a task closes a session, a connection or an abandoned generator.

    SQLAlchemy does this in separate tasks, so that a cancellation does not stop it.
    """
    coroutine = task.get_coro()
    if iscoroutine(coroutine):
        return coroutine.cr_code.co_filename.startswith(SQLALCHEMY)
    return type(coroutine).__name__ == "async_generator_athrow"


def is_of_anyio(task: asyncio.Task[Any]) -> bool:
    """Return whether a task is the one in which anyio's pytest plugin runs tests and fixtures."""
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")


def is_worker(thread: threading.Thread) -> bool:
    """Return whether a thread belongs to a pool of concurrent.futures or anyio."""
    return thread in pools._threads_queues or isinstance(thread, anyio_on_asyncio.WorkerThread)


def fixture_definitions(item: pytest.Function) -> Mapping[str, Sequence[pytest.FixtureDef[Any]]]:
    """Return the fixtures that a test can use, by name; of each name, the closest one is last."""
    return item._fixtureinfo.name2fixturedefs


def fail_again(fixture: Any, failure: BaseException) -> None:
    """Make a failed fixture fail with `failure` for later tests that use it."""
    _, key, _ = fixture.cached_result
    fixture.cached_result = (None, key, (failure, None))


def current_scope() -> anyio.CancelScope | None:
    """Return the innermost cancel scope of the current task, such as a timeout or a task group."""
    task: Any = asyncio.current_task()
    state = anyio_on_asyncio._task_states.get(task)
    return state.cancel_scope if state else None


def leave_scopes(until: anyio.CancelScope | None) -> bool:
    """Leave the cancel scopes that the current task has entered since `until`.

    Return whether it had entered any.
    """
    found = False
    while (scope := current_scope()) not in {None, until}:
        scope.__exit__(None, None, None)
        found = True
    return found


def leave_cancelled_scopes() -> bool:
    """Leave the cancel scopes that cancel the current task, so that it can continue.

    Return whether there were any.
    """
    task: Any = asyncio.current_task()
    scope: Any = current_scope()
    while scope is not None and not scope.cancel_called:
        scope = scope._parent_scope
    found = scope is not None and leave_scopes(scope._parent_scope)
    while task.cancelling():
        task.uncancel()
    return found


def keep_real_time(
    loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic
) -> None:
    """Make the timers of `loop` follow `clock`, even if a test stops the clock of asyncio.

    freezegun stops it, and then no sleep or timeout ends, not even in pytest plugins.
    """
    if isinstance(loop, asyncio.BaseEventLoop):  # uvloop has its own clock
        vars(loop)["time"] = clock


def go_on_after_exits(
    loop: asyncio.AbstractEventLoop, report: Callable[[SystemExit], None]
) -> None:
    """Let `loop` continue when a task raises SystemExit, and call `report` with it.

    When pytest-timeout or Ctrl-C interrupts the loop, end the tests' task. Otherwise, everything
    that follows, starting with the teardown, would wait for it forever.
    """
    if "run_until_complete" in vars(loop):
        return
    run = loop.run_until_complete

    def run_until_complete(awaitable: Awaitable[Any]) -> object:
        future = asyncio.ensure_future(awaitable, loop=loop)
        while True:
            try:
                return run(future)
            except SystemExit as error:
                if future.done():
                    raise
                report(error)
            except (pytest.fail.Exception, KeyboardInterrupt):
                if future.done():  # the test's own failure
                    raise
                tasks = {each for each in asyncio.all_tasks(loop) - {future} if is_of_anyio(each)}
                for _ in range(CANCELLATIONS):
                    for task in tasks:
                        task.cancel()
                    run(asyncio.wait({future}, timeout=GRACE))
                    if future.done():
                        break
                if future.done() and not future.cancelled():
                    future.exception()
                raise

    vars(loop)["run_until_complete"] = run_until_complete
