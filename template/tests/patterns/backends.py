"""Running what needs no database on asyncio and on trio.

The database drivers work on asyncio only. And while the engine of the session holds the loop of
all async tests, the parameter `trio` of `anyio_backend` would be passed over in silence. So these
tests are plain functions, and bring a loop of their own, in a thread of its own.
"""

from collections.abc import Awaitable, Callable

import pytest
import sniffio
from anyio.from_thread import start_blocking_portal

on_both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run_on(backend: str, check: Callable[[], Awaitable[None]]) -> None:
    """Run `check` on `backend`, and make sure that this is where it runs."""

    async def run() -> None:
        assert sniffio.current_async_library() == backend
        await check()

    with start_blocking_portal(backend) as portal:
        portal.call(run)
