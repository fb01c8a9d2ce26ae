"""What is still running when a test is over."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from anyio import CancelScope

from tests.harness.patience import GRACE, close
from tests.harness.private import current_scope, is_closing, is_of_anyio, leave_scopes

LAST_STEPS = 20
"""How often the event loop turns before a task counts as left over: closing takes some turns."""

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
    """End what is left running in the context, and add to `refusals` what that was."""
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
    """Wait for the tasks that close something and were not in `before`."""
    closing = {task for task in asyncio.all_tasks() - before if is_closing(task)}
    if closing:
        await asyncio.wait(closing, timeout=GRACE)


async def end_tasks(before: set[Task]) -> list[str]:
    """End the tasks that are running but were not in `before`, nor this one; name them."""

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
    await cancel(find())  # what closes something, but does not get there
    return sorted(getattr(task.get_coro(), "__qualname__", repr(task)) for task in stray)


async def cancel(tasks: set[Task]) -> None:
    """Cancel tasks; those that do not heed it are ended all the same."""
    for end in (Task.cancel, stop):
        for task in tasks:
            end(task)
        if tasks:
            ended, tasks = await asyncio.wait(tasks, timeout=GRACE)
            await asyncio.gather(*ended, return_exceptions=True)


def stop(task: Task) -> None:
    """End a task that catches its cancellation."""
    close(task.get_coro())
    task.cancel()  # so that it wakes up, and finds out


@asynccontextmanager
async def in_own_task(context: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    """Enter and leave `context` in a task of its own.

    Its cancel scopes are then none of the test's, which runs in one task with its fixtures.
    """
    entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        async with context:
            entered.set_result(None)
            await leave.wait()

    task = asyncio.create_task(hold())
    task.add_done_callback(lambda _: entered.cancel())  # where `context` is not entered
    try:
        await asyncio.wait({entered})
        if not entered.cancelled():
            yield
    finally:
        leave.set()
        await task
