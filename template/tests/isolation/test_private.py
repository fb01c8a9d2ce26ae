"""What the harness knows of other packages is still so: see tests/harness/private.py."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.private import fixture_definitions, is_closing, is_of_anyio


async def test_tasks_of_anyio_are_recognized(anyio_backend: str) -> None:
    tasks = asyncio.all_tasks()
    assert len(tasks) >= 2  # the event loop's entry, and what runs tests and fixtures
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


def test_fixtures_of_a_test_are_found(request: pytest.FixtureRequest, tmp_path: object) -> None:
    assert fixture_definitions(request.node)["tmp_path"][-1].argname == "tmp_path"
