"""Waiting that has an end, but not because of a breakpoint.

Only the time counts in which the event loop runs: a debugger that holds it, or a machine that has
stopped for a while, takes no more than a tick of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any

TICK = 0.25
"""How often, in seconds, it is counted that the event loop runs."""

GRACE = 2.0
"""How long, in seconds, what is about to end may take to do so."""


async def run_for(seconds: float) -> None:
    """Sleep until the event loop has run for so long."""
    for _ in range(max(1, round(seconds / TICK))):
        await asyncio.sleep(min(TICK, seconds))


async def wait_patiently(wait: Callable[[], Awaitable[object]], limit: float) -> bool:
    """Wait for what `wait` returns, at most `limit` seconds; return whether it came."""
    waiting = asyncio.ensure_future(wait())
    running = asyncio.ensure_future(run_for(limit))
    try:
        await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done()
    finally:
        waiting.cancel()
        running.cancel()


class Deadline:
    """Ends what runs in its context after a time: `async with deadline: await coroutine`.

    Raises TimeoutError then, which says `what` did not end. A coroutine that catches its
    cancellation is closed.
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
        await run_for(min(GRACE, limit / 2))  # before pytest-timeout ends the run
        close(self._coroutine)
        task.cancel()  # so that it wakes up, and finds out

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
    """End a coroutine that is suspended, as the garbage collector does."""
    if asyncio.iscoroutine(coroutine):
        try:
            coroutine.close()
        except Exception:  # noqa: BLE001 (whatever it raises on its way out, or that it goes on)
            return
