"""Mistakes that would fail some later test fail the test that makes them."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from anyio import run_process
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness.databases import ROOT

loops: set[int] = set()
twice = pytest.mark.parametrize("run", [1, 2])

# Cancelled after a second, with time to tell of it.
CONFTEST = """
from tests.conftest import *


def pytest_collection_finish():
    from tests.harness import plugin

    plugin.PATIENCE = 0.05
"""

FAULTY_TESTS = """
import asyncio

import pytest


async def fail_later():
    await asyncio.sleep(0.01)
    raise RuntimeError("too late")


@pytest.mark.usefixtures("db_session")
async def test_stray_task():
    asyncio.create_task(fail_later())


async def test_hang():
    await asyncio.Event().wait()


def test_sync(db_session):
    pass


async def test_innocent(db_session):
    await asyncio.sleep(0.02)
"""


@twice
async def test_all_tests_share_one_event_loop(db_engine: AsyncEngine, run: int) -> None:
    loops.add(id(asyncio.get_running_loop()))
    assert len(loops) == 1


@pytest.mark.timeout(120)  # it runs pytest, which takes its time to start
async def test_faulty_tests_fail_and_leave_the_others_alone(
    db_engine: AsyncEngine, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_faulty.py").write_text(FAULTY_TESTS)
    command = [
        *(sys.executable, "-m", "pytest", str(tmp_path / "test_faulty.py")),
        *("-c", str(ROOT / "pytest.toml"), "--rootdir", str(ROOT)),
        *("-p", "no:randomly", "-p", "no:cacheprovider", "-o", "timeout=15"),
    ]
    url = db_engine.url.render_as_string(hide_password=False)
    result = await run_process(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TEST_DATABASE_URL": url},
        check=False,
    )
    output = (result.stdout + result.stderr).decode()
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, output
    assert "3 failed, 1 passed" in output
    assert "not what it started: fail_later" in output
    assert "Write `async def test_sync`" in output
    assert "TimeoutError" in output
