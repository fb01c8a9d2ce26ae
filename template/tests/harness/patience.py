"""Time limits that do not count the time at a breakpoint.

Only the time while the event loop runs counts. If a debugger stops it, or the machine is suspended,
this counts as a single tick.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any

TICK = 0.25
"""The interval, in seconds, at which the event loop's running time is counted."""

GRACE = 2.0
"""How long, in seconds, code may take to end."""


async def run_for(seconds: float) -> None:
    """Sleep until the event loop has run for this many seconds."""
    for _ in range(max(1, round(seconds / TICK))):
        await asyncio.sleep(min(TICK, seconds))


async def wait_patiently(wait: Callable[[], Awaitable[object]], limit: float) -> bool:
    """Await `wait()` for at most `limit` seconds; return whether it finished."""
    waiting = asyncio.ensure_future(wait())
    running = asyncio.ensure_future(run_for(limit))
    try:
        await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done()
    finally:
        waiting.cancel()
        running.cancel()


class Deadline:
    """Cancels the code in its context after a time: `async with deadline: await coroutine`.

    It raises a TimeoutError that names `what`. It closes a coroutine that ignores the cancellation.
    """

    def __init__(self, what: str, coroutine: Coroutine[Any, Any, Any], limit: float | None) -> None:
        self._what = what
        self._coroutine = coroutine
        self._limit = limit
        self._has_passed = False
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        with suppress(RuntimeError):  # on trio
            self._task = asyncio.current_task()
        if self._task is not None and self._limit is not None:
            self._watch = asyncio.create_task(self._end(self._task, self._limit))

    async def _end(self, task: asyncio.Task[Any], limit: float) -> None:
        await run_for(limit)
        self._has_passed = True
        task.cancel()
        await run_for(min(GRACE, limit / 2))  # less, or pytest-timeout ends the whole run
        close(self._coroutine)
        task.cancel()  # wakes it up, so that it notices

    async def __aexit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._task is not None and self._has_passed:
            for _ in range(self._task.cancelling()):
                self._task.uncancel()
            raise TimeoutError(f"The {self._what} did not end within {self._limit} s.") from error


def close(coroutine: object) -> None:
    """End a suspended coroutine, as the garbage collector does."""
    if asyncio.iscoroutine(coroutine):
        try:
            coroutine.close()
        except Exception:  # noqa: BLE001 (whatever it raises while it ends, or if it does not end)
            return
