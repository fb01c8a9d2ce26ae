"""All tests share one event loop, and its timers run on real time."""

import asyncio
import time

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

loops: set[int] = set()
twice = pytest.mark.parametrize("run", [1, 2])


@twice
async def test_all_tests_share_one_event_loop(db_engine: AsyncEngine, run: int) -> None:
    loops.add(id(asyncio.get_running_loop()))
    assert len(loops) == 1


async def test_timers_run_on_where_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert asyncio.get_running_loop().time() > 0
