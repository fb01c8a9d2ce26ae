"""The private APIs in tests/harness/private.py have not changed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import closing

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.private import (
    current_scope,
    fixture_definitions,
    go_on_after_exits,
    is_closing,
    is_of_anyio,
    is_worker,
    leave_cancelled_scopes,
    leave_scopes,
)


async def test_tasks_of_anyio_are_recognized(anyio_backend: str) -> None:
    tasks = asyncio.all_tasks()
    assert len(tasks) >= 2  # the event loop's entry, and the task of tests and fixtures
    assert sum(map(is_of_anyio, tasks)) >= 2
    other = asyncio.create_task(asyncio.sleep(0))
    assert not is_of_anyio(other)
    await other


async def test_tasks_that_close_are_recognized(db_engine: AsyncEngine) -> None:
    closing = set()

    async def watch(opened: AsyncSession | AsyncIterator[None]) -> None:
        before = asyncio.all_tasks()
        if isinstance(opened, AsyncSession):
            asyncio.get_running_loop().call_soon(
                lambda: closing.update(asyncio.all_tasks() - before)
            )
            async with opened:
                pass

    await watch(AsyncSession(db_engine))
    assert [is_closing(task) for task in closing] == [True]


async def test_threads_of_pools_are_recognized(anyio_backend: str) -> None:
    assert is_worker(await asyncio.to_thread(threading.current_thread))
    assert is_worker(await anyio.to_thread.run_sync(threading.current_thread))
    assert not is_worker(threading.main_thread())


def test_fixtures_of_a_test_are_found(request: pytest.FixtureRequest, tmp_path: object) -> None:
    assert fixture_definitions(request.node)["tmp_path"][-1].argname == "tmp_path"


async def test_scopes_that_were_entered_are_left(anyio_backend: str) -> None:
    before = current_scope()
    for _ in range(2):
        anyio.CancelScope().__enter__()
    assert current_scope() is not before
    assert leave_scopes(before)
    assert current_scope() is before
    assert not leave_scopes(before)


async def test_scopes_that_cancel_the_task_are_left(anyio_backend: str) -> None:
    before = anyio.CancelScope()
    with before:
        cancelled = anyio.CancelScope()
        cancelled.__enter__()
        anyio.CancelScope().__enter__()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anyio.sleep_forever()
        assert leave_cancelled_scopes()
        assert current_scope() is before
        assert not leave_cancelled_scopes()
        await anyio.lowlevel.checkpoint()


def test_loop_goes_on_after_an_exit() -> None:
    loop = asyncio.new_event_loop()
    exits: list[str] = []
    go_on_after_exits(loop, lambda error: exits.append(repr(error)))

    async def leave() -> None:
        raise SystemExit(3)

    async def wait_for_exit() -> str:
        task = asyncio.create_task(leave())
        await asyncio.wait({task})
        assert isinstance(task.exception(), SystemExit)
        return "went on"

    with closing(loop):
        assert loop.run_until_complete(wait_for_exit()) == "went on"
    assert exits == ["SystemExit(3)"]
