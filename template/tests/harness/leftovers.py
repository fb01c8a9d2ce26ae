"""What is still running when a test is over."""

import asyncio
from typing import Any

from tests.harness.patience import GRACE, close
from tests.harness.private import is_closing, is_of_anyio

LAST_STEPS = 20
"""How often the event loop turns before a task counts as left over: closing takes some turns."""

Task = asyncio.Task[Any]


async def wait_for_closing(before: set[Task]) -> None:
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
