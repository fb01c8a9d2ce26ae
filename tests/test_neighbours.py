"""No test breaks another one: culprits, and the tests after them, in a rendered project."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from tests.mutants import copied, run_tests
from tests.rendering import Project
from tests.test_isolation import EXTERNAL

NEIGHBOURS = Path(__file__).parent / "neighbours"
ORDERS = {
    "in order": ("-p", "no:randomly"),
    "in random order": (),
    "by four workers": ("-n", "4"),
}
# Why a culprit is skipped: it needs another database, or a driver that projects do not have.
NOT_HERE = {
    "sqlite": ("needs postgresql",),
    "postgresql": ("needs sqlite", "needs psycopg"),
}
# The outcomes, as the elements of pytest's report are called.
KINDS = {
    "failure": "failed",
    "error": "failed",
    "pytest.skip": "skipped",
    "pytest.xfail": "xfailed",
}
# As many repetitions as a process finishes before `run` times out.
REPETITIONS, PROCESSES = 10, 8
REPEATED = f"""
import copy

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    once = list(items)
    items.clear()
    for _ in range({REPETITIONS}):
        for item in map(copy.copy, once):
            item._initrequest()
            item.stash = pytest.Stash()
            items.append(item)
"""

Installed = Callable[[str], Project]
Database = tuple[str, Project, dict[str, str]]


class Result(NamedTuple):
    """The result of a test."""

    name: str
    properties: dict[str, str]
    kind: str
    message: str

    @property
    def is_culprit(self) -> bool:
        return "culprit" in self.properties

    def is_for_another_database(self, database: str) -> bool:
        """Return whether the culprit needs another database, or a driver that is not installed."""
        return self.kind == "skipped" and any(why in self.message for why in NOT_HERE[database])

    @property
    def is_as_declared(self) -> bool:
        if not self.is_culprit:
            return self.kind == "passed"
        declared = self.properties["culprit"], self.properties["sentence"]
        return self.kind == declared[0] and declared[1] in self.message


@pytest.fixture(
    params=[
        "sqlite file",
        pytest.param("postgresql embedded", marks=pytest.mark.ci),
        "postgresql external",
    ]
)
def database(request: pytest.FixtureRequest, installed: Installed) -> Database:
    """The kind of database, a project, and the environment for its tests to run on it."""
    if request.param == "sqlite file":
        return "sqlite", installed("core"), {}
    if request.param == "postgresql embedded":
        return "postgresql", installed("other"), {}
    if EXTERNAL is None or not EXTERNAL.startswith("postgresql"):
        pytest.skip("TEST_DATABASE_URL names no PostgreSQL server")
    return "postgresql", installed("other"), {"TEST_DATABASE_URL": EXTERNAL}


def run_pairs(project: Project, directory: Path, *options: str, **env: str) -> list[Result]:
    """Run all pairs in a copy of the project."""
    copy = copied(project, directory)
    shutil.copytree(NEIGHBOURS, copy / "tests/neighbours", dirs_exist_ok=True)
    report = copy / "report.xml"
    code, output = run_tests(
        project, copy, "tests/neighbours", f"--junitxml={report}", *options, **env
    )
    assert code == pytest.ExitCode.TESTS_FAILED, output  # as culprits do
    assert report.exists(), output
    return list(results_in(report))


def results_in(report: Path) -> Iterator[Result]:
    """Read the results of the tests."""
    for case in ElementTree.parse(report).iter("testcase"):
        properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        ends = [end for end in case if end.tag in {"failure", "error", "skipped"}]
        kinds = [KINDS[end.get("type", "") if end.tag == "skipped" else end.tag] for end in ends]
        message = "\n".join(f"{end.get('message')}\n{end.text}" for end in ends)
        yield Result(
            case.attrib["name"], properties, " and ".join(dict.fromkeys(kinds)) or "passed", message
        )


@pytest.mark.parametrize(
    "order",
    [
        "in order",
        pytest.param("by four workers", marks=pytest.mark.ci),
        pytest.param("in random order", marks=pytest.mark.slow),
    ],
)
def test_culprits_end_as_they_must_and_harm_no_next_test(
    database: Database, tmp_path: Path, order: str
) -> None:
    kind, project, env = database
    results = run_pairs(project, tmp_path / "copy", *ORDERS[order], **env)
    for_this = [result for result in results if not result.is_for_another_database(kind)]
    assert [result for result in for_this if not result.is_as_declared] == []
    culprits = [result for result in for_this if result.is_culprit]
    assert len({result.name.split("[")[0] for result in culprits}) >= 40
    next_tests = Counter(result.properties.get("next_after", "") for result in results)
    assert {next_tests[culprit.name] for culprit in culprits} == {2}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_culprits_that_depend_on_timing_end_the_same_each_time(
    database: Database, tmp_path: Path
) -> None:
    _, project, env = database
    copy = copied(project, tmp_path / "copy")
    (copy / "repeated.py").write_text(REPEATED, encoding="utf-8")
    options = ("-p", "no:randomly", "-p", "repeated", "-m", "timing")
    results = [
        result for _ in range(PROCESSES) for result in run_pairs(project, copy, *options, **env)
    ]
    assert [result for result in results if not result.is_as_declared] == []
    runs = Counter(result.name for result in results if result.is_culprit)
    assert set(runs.values()) == {REPETITIONS * PROCESSES}
