"""A mistake fails the test that makes it, not a later one."""

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import pytest
from anyio import run_process
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness.databases import ROOT

loops: set[int] = set()
twice = pytest.mark.parametrize("run", [1, 2])

CONFTEST = """
from tests.conftest import *


def pytest_sessionstart():
    from tests.harness import plugin

    plugin.PATIENCE = 0.0025  # of 10 s
"""
FAULTY_TESTS = """
import asyncio

import anyio
import pytest

async def fail_later():
    await asyncio.sleep(60)
    raise RuntimeError("too late")


@pytest.mark.usefixtures("db_session")
async def test_stray_task():
    asyncio.create_task(fail_later())


async def test_stray_task_without_a_database():
    asyncio.create_task(fail_later())


@pytest.mark.timeout(timeout=10)
async def test_hang():
    await asyncio.Event().wait()


@pytest.fixture
async def hangs():
    yield
    await asyncio.Event().wait()


@pytest.mark.timeout(10)
async def test_fixture_that_does_not_end(hangs):
    pass


@pytest.mark.timeout(10)
async def test_hang_that_swallows_its_cancellation():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


async def test_exit(db_session):
    raise SystemExit(3)


@pytest.fixture
async def leaves():
    raise SystemExit(3)


async def test_exit_in_a_fixture(leaves):
    pass


async def leave():
    raise SystemExit(3)


async def test_exit_in_a_task(db_session):
    await asyncio.wait({asyncio.create_task(leave())})


async def test_timeout_never_left(db_session):
    anyio.move_on_after(60).__enter__()


async def test_timeout_never_left_without_a_database():
    anyio.move_on_after(60).__enter__()


async def test_failed_by_itself(db_session):
    pytest.fail("by itself")


async def test_cancelled(db_session):
    task = asyncio.create_task(fail_later())
    task.cancel()
    await task


async def test_session_left_open(db_session, rolled_back_transaction):
    session = type(db_session)(rolled_back_transaction.engine)
    await session.connection()
    await (await session.connection()).exec_driver_sql("SELECT 1")
    kept.append(session)


kept = []


def test_sync(db_session):
    pass


@pytest.mark.skip
def test_sync_skipped(db_session):
    pass


@pytest.mark.xfail(strict=True)
def test_sync_expected_to_fail(db_session):
    pass


async def test_innocent(db_session):
    assert not [task for task in asyncio.all_tasks() if "fail_later" in repr(task)]
"""


@twice
async def test_all_tests_share_one_event_loop(db_engine: AsyncEngine, run: int) -> None:
    loops.add(id(asyncio.get_running_loop()))
    assert len(loops) == 1


async def test_timers_run_on_where_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert asyncio.get_running_loop().time() > 0


@pytest.mark.timeout(300)  # it runs pytest, which starts slowly
async def test_faulty_tests_fail_and_leave_the_others_alone(
    db_engine: AsyncEngine, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_faulty.py").write_text(FAULTY_TESTS)
    command = [
        *(sys.executable, "-m", "pytest", str(tmp_path / "test_faulty.py")),
        *("-c", str(ROOT / "pytest.toml"), "--rootdir", str(ROOT)),
        *("-p", "no:randomly", "-p", "no:cacheprovider", "-o", "timeout=4000"),
    ]
    url = db_engine.url.render_as_string(hide_password=False)
    result = await run_process(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TEST_DATABASE_URL": url, "PYTEST_ADDOPTS": ""},
        check=False,
    )
    output = (result.stdout + result.stderr).decode()
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, output
    # On a build server, pytest repeats the errors in full in its summary.
    failures = output.partition("short test summary info")[0]
    # Leftovers are errors of the teardown; the test itself has passed.
    assert "5 failed, 8 passed, 1 skipped, 1 xfailed, 9 errors" in output
    assert failures.count("left a task running: fail_later") == 2
    assert "not ended all of its transactions: 1 still open" in failures
    assert "Write `async def test_sync`" in failures
    timed_out = re.findall(r"TimeoutError: The (\w+) did not end within 0.025 s", failures)
    assert sorted(timed_out) == ["fixture", "test", "test"]
    assert "The test raised SystemExit(3)" in failures
    assert "The fixture raised SystemExit(3)" in failures
    assert "A task raised SystemExit(3)" in failures
    assert failures.count("timeout or WebSocket and not left it") == 2
    assert "awaits a task that was cancelled" in failures
