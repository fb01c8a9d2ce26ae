"""A mistake fails the test that makes it, not a later one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import pytest_of
from tests.rendering import Project, run

FAULTY = Path(__file__).parent / "faulty"
OPTIONS = ("tests/faulty", "-p", "no:randomly", "-o", "timeout=4000")
# Leftovers are errors of the teardown; the test itself has passed.
ENDS = "5 failed, 8 passed, 1 skipped, 1 xfailed, 9 errors"
FAILURES = {
    "left a task running: fail_later": 2,
    "not ended all of its transactions: 1 still open": 1,
    "Write `async def test_sync`": 1,
    "TimeoutError: The test did not end within 0.025 s": 2,
    "TimeoutError: The fixture did not end within 0.025 s": 1,
    "The test raised SystemExit(3)": 1,
    "The fixture raised SystemExit(3)": 1,
    "A task raised SystemExit(3)": 1,
    "timeout or WebSocket and not left it": 2,
    "awaits a task that was cancelled": 1,
}


def deviations(project: Project, copy: Path) -> list[str]:
    """Run the faulty tests in a copy of the project; return how they do not end as they must."""
    shutil.copytree(FAULTY, copy / "tests/faulty", dirs_exist_ok=True)
    try:
        done = run(*pytest_of(project), *OPTIONS, cwd=copy, timeout=90)
    except subprocess.TimeoutExpired:
        return ["They do not end."]
    # On a build server, pytest repeats the errors in full in its summary.
    failures = done.stdout.partition("short test summary info")[0]
    wrong = [text for text, times in FAILURES.items() if failures.count(text) != times]
    if wrong or done.returncode != pytest.ExitCode.TESTS_FAILED or ENDS not in done.stdout:
        return [*wrong, done.stdout]
    return []


@with_projects("core", ci=["other"])
def test_faulty_tests_fail_and_leave_the_others_alone(project: Project, copy: Path) -> None:
    assert deviations(project, copy) == []
