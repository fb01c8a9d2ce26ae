"""Use a rendered project as its owner would; test_pairs.py runs its checks for all answers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant
from tests.rendering import Project, git

MAY_WAIT = (
    "tests/items/",
    *(f"tests/core/test_{name}.py" for name in ("jobs", "notifications", "unavailable", "worker")),
)
"""Tests of streams and schedules that depend on the clock, and of other processes."""

NO_COVERAGE = Mutant("no coverage", ".checks.toml", '"pytest --cov"', '"pytest"')

# Records which tests waited for a clock: for a timer of the event loop, or in a sleep.
# Time limits may expire on a slow machine, but nothing waits for them; and the embedded server
# takes its time to start.
WATCH = """
import asyncio
import os
import sys
import time
import weakref

HERE = os.environ["WATCHED"] + "/"
LEFT_OUT = ("tests/harness/patience.py", "tests/harness/postgresql.py")
call_at, run, sleep = asyncio.BaseEventLoop.call_at, asyncio.Handle._run, time.sleep
set_by = weakref.WeakKeyDictionary()


def caller():
    frame = sys._getframe(2)
    while frame:
        file = frame.f_code.co_filename
        if file.startswith(HERE):
            return f"{file.removeprefix(HERE)}:{frame.f_lineno}"
        frame = frame.f_back


def note(place):
    if place and not place.startswith(LEFT_OUT):
        with open(os.environ["WAITS"], "a") as log:
            log.write(f"{os.environ.get('PYTEST_CURRENT_TEST', '')} at {place}\\n")


def noting_call_at(loop, when, *arguments, **options):
    timer = call_at(loop, when, *arguments, **options)
    if when > loop.time():
        set_by[timer] = caller()
    return timer


def noting_run(timer):
    note(set_by.get(timer))
    run(timer)


def noting_sleep(seconds):
    if seconds > 0:
        note(caller())
    sleep(seconds)


asyncio.BaseEventLoop.call_at = noting_call_at
asyncio.TimerHandle._run = noting_run
time.sleep = noting_sleep
"""


@pytest.fixture(autouse=True)
def left_as_it_was(project: Project) -> None:
    """Check that the tests before this one have changed no file."""
    assert git("status", "--porcelain", cwd=project.path) == ""


@with_projects("default")
def test_all_checks_pass_and_wait_for_no_clock(
    project: Project, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    said = run_checks(project, tmp_path, has_coverage=False)  # which takes half of the time
    record_property("tried", f"all checks with the defaults: {passed_in(said)}")


@with_projects(ci=["default", "postgresql"], slow=["core", "other"])
def test_all_checks_pass_and_the_tests_cover_the_service(
    project: Project, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    said = run_checks(project, tmp_path, has_coverage=True)
    if project.has_example:
        assert re.search(r"^TOTAL .* 100%$", said, re.MULTILINE), said
    answers = project.answers or "the defaults"
    record_property("tried", f"all checks and coverage with {answers}: {passed_in(said)}")


def run_checks(project: Project, tmp_path: Path, *, has_coverage: bool) -> str:
    """Run all checks, which must pass without a warning, and without waiting for a clock."""
    copy = Project(copied(project, tmp_path / "copy"), project.answers, project.path)
    if not has_coverage:
        plant(NO_COVERAGE, copy.path)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/watch.py").write_text(WATCH, encoding="utf-8")
    waits = tmp_path / "waits.txt"
    waits.touch()
    watched = {
        "PYTEST_ADDOPTS": "-p watch",
        "PYTHONPATH": str(tmp_path / "plugins"),
        "WATCHED": str(copy.path),
        "WAITS": str(waits),
    }
    said = copy.check("uv", "run", "poe", "check", **watched)
    assert not re.search(r"\bwarnings?\b", said, re.IGNORECASE), said
    waited = waits.read_text(encoding="utf-8").splitlines()
    assert [wait for wait in waited if not wait.startswith(MAY_WAIT)] == []
    return said


def passed_in(said: str) -> str:
    """Return how many tests have passed, from the output of pytest."""
    [passed] = re.findall(r"\d+ passed", said)
    return str(passed)


@with_projects("postgresql")
def test_the_tests_pass_side_by_side(project: Project) -> None:
    said = project.check("uv", "run", "pytest", "-n", "2")
    assert re.search(r"\d+ passed", said)
    assert not re.search(r"\bwarnings?\b", said, re.IGNORECASE), said


@with_projects("postgresql", ci=["core", "default"])
def test_the_migrations_lead_to_the_models(project: Project) -> None:
    with project.new_database() as url:
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        said = project.check("uv", "run", "alembic", "check", DATABASE_URL=url)
        assert "No new upgrade operations detected" in said
        if project.has_example:
            project.check("uv", "run", "alembic", "downgrade", "base", DATABASE_URL=url)
            done = project.run("uv", "run", "alembic", "check", DATABASE_URL=url)
            assert done.returncode != 0
