"""Run code without a database on asyncio and trio.

The database drivers need asyncio. And while the session's engine holds the event loop of all async
tests, anyio silently ignores the parameter `trio` of `anyio_backend`. So these tests are sync, and
run their own event loop in a thread.
"""

from collections.abc import Awaitable, Callable

import pytest
import sniffio
from anyio.from_thread import start_blocking_portal

on_both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run_on(backend: str, check: Callable[[], Awaitable[None]]) -> None:
    """Run `check` on `backend`, and assert that it really runs there."""

    async def run() -> None:
        assert sniffio.current_async_library() == backend
        await check()

    with start_blocking_portal(backend) as portal:
        portal.call(run)
