"""Tests that make mistakes, and one that makes none: `tests/test_faulty.py` runs them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NoReturn

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.harness.transaction import RolledBackTransaction

left_open: list[AsyncSession] = []


async def fail_later() -> None:
    await asyncio.sleep(60)
    raise RuntimeError("too late")


async def leave() -> NoReturn:
    raise SystemExit(3)


@pytest.fixture
async def hangs() -> AsyncIterator[None]:
    yield
    await asyncio.Event().wait()


@pytest.fixture
async def leaves() -> None:
    raise SystemExit(3)


@pytest.mark.usefixtures("db_session")
async def test_stray_task() -> None:
    asyncio.create_task(fail_later())  # noqa: RUF006 (the mistake)


async def test_stray_task_without_a_database() -> None:
    asyncio.create_task(fail_later())  # noqa: RUF006 (the mistake)


@pytest.mark.timeout(timeout=10)
async def test_hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.timeout(10)
async def test_fixture_that_does_not_end(hangs: None) -> None:
    pass


@pytest.mark.timeout(10)
async def test_hang_that_swallows_its_cancellation() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_exit(db_session: AsyncSession) -> None:
    raise SystemExit(3)


async def test_exit_in_a_fixture(leaves: None) -> None:
    pass


async def test_exit_in_a_task(db_session: AsyncSession) -> None:
    await asyncio.wait({asyncio.create_task(leave())})


async def test_timeout_never_left(db_session: AsyncSession) -> None:
    anyio.move_on_after(60).__enter__()


async def test_timeout_never_left_without_a_database() -> None:
    anyio.move_on_after(60).__enter__()


async def test_failed_by_itself(db_session: AsyncSession) -> None:
    pytest.fail("by itself")


async def test_cancelled(db_session: AsyncSession) -> None:
    task = asyncio.create_task(fail_later())
    task.cancel()
    await task


async def test_session_left_open(
    db_session: AsyncSession, rolled_back_transaction: RolledBackTransaction
) -> None:
    session = type(db_session)(rolled_back_transaction.engine)
    await (await session.connection()).exec_driver_sql("SELECT 1")
    left_open.append(session)


def test_sync(db_session: AsyncSession) -> None:
    pass


@pytest.mark.skip
def test_sync_skipped(db_session: AsyncSession) -> None:
    pass


@pytest.mark.xfail(strict=True)
def test_sync_expected_to_fail(db_session: AsyncSession) -> None:
    pass


async def test_innocent(db_session: AsyncSession) -> None:
    assert not [task for task in asyncio.all_tasks() if "fail_later" in repr(task)]
