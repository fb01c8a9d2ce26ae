"""End what is still running after a test."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from anyio import CancelScope

from tests.harness.patience import GRACE, close
from tests.harness.private import current_scope, is_closing, is_of_anyio, leave_scopes

LAST_STEPS = 20
"""How many iterations of the event loop a task has to end: closing takes a few."""

STRAY_TASKS = (
    "The test has left a task running: {}. "
    "Await the task, or start it in a task group that ends with its request."
)
SCOPES = (
    "The test has entered a task group, timeout or WebSocket and not left it. "
    "Use `async with`, which leaves it."
)

Task = asyncio.Task[Any]


@asynccontextmanager
async def clearing_up(refusals: list[str]) -> AsyncIterator[None]:
    """End what was started in the context and is still running, and add it to `refusals`."""
    tasks, scope = asyncio.all_tasks(), current_scope()
    try:
        yield
    finally:
        if leave_scopes(scope):
            refusals.append(SCOPES)
        with CancelScope(shield=True):
            if stray := await end_tasks(tasks):
                refusals.append(STRAY_TASKS.format(", ".join(stray)))


async def wait_for_closing(before: AbstractSet[Task] = frozenset()) -> None:
    """Wait for tasks that close something, except those in `before`."""
    closing = {task for task in asyncio.all_tasks() - before if is_closing(task)}
    if closing:
        await asyncio.wait(closing, timeout=GRACE)


async def end_tasks(before: set[Task]) -> list[str]:
    """End all tasks except those in `before` and the current one; return their names."""

    def find() -> set[Task]:
        return {task for task in asyncio.all_tasks() - before - {this} if not is_of_anyio(task)}

    this = asyncio.current_task()
    assert this is not None
    for _ in range(LAST_STEPS):
        if not find():
            return []
        await asyncio.sleep(0)
    await wait_for_closing(before)
    stray = {task for task in find() if not is_closing(task)}
    await cancel(stray)
    await wait_for_closing(before)
    await cancel(find())  # tasks that close something, but do not finish
    return sorted(getattr(task.get_coro(), "__qualname__", repr(task)) for task in stray)


async def cancel(tasks: set[Task]) -> None:
    """Cancel tasks, and end those that ignore it."""
    for end in (Task.cancel, stop):
        for task in tasks:
            end(task)
        if tasks:
            ended, tasks = await asyncio.wait(tasks, timeout=GRACE)
            await asyncio.gather(*ended, return_exceptions=True)


def stop(task: Task) -> None:
    """End a task that ignores its cancellation."""
    close(task.get_coro())
    task.cancel()  # wakes it up, so that it notices


@asynccontextmanager
async def in_own_task(context: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    """Enter and exit `context` in a separate task.

    This separates its cancel scopes from those of the test and its fixtures, which share a task.
    """
    entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        async with context:
            entered.set_result(None)
            await leave.wait()

    task = asyncio.create_task(hold())
    task.add_done_callback(lambda _: entered.cancel())  # if `context` cannot be entered
    try:
        await asyncio.wait({entered})
        if not entered.cancelled():
            yield
    finally:
        leave.set()
        await task
