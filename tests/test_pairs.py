"""Every two choices meet in a project that is installed, checked and started."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pairwise import choices, pairs_covered, pairwise
from tests.rendering import Answers, Workshop
from tests.test_server import check_that_it_serves

CHOICES = choices()
SETS = [
    {**answers, "project_name": '"Ünïcode" \\ it\'s {{ fine }}'} for answers in pairwise(CHOICES)
]


def group(answers: Answers) -> pytest.MarkDecorator:
    """Let projects on the same Python share a worker, and with it a workshop."""
    return pytest.mark.xdist_group(f"pairs on {answers['python_version']}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(answers, marks=group(answers), id="-".join(map(str, answers.values())))
        for answers in SETS
    ],
)
def test_a_project_passes_its_checks_and_serves(
    template: Path,
    workshop: Callable[[str], Workshop],
    tmp_path: Path,
    answers: Answers,
    record_property: Callable[[str, object], None],
) -> None:
    project = workshop(answers["python_version"]).install(template, answers)
    checks = ("check-lock", "check-format", "check-lint", "check-types", "check-own")
    said = "".join(project.check("uv", "run", "poe", check) for check in checks)
    said += project.check("uv", "run", "pytest")
    assert not re.search(r"\bwarnings?\b", said, re.IGNORECASE), said
    passed = re.search(r"\d+ passed", said)
    assert passed
    check_that_it_serves(project, "run", tmp_path / "log")
    chosen = ", ".join(map(str, list(answers.values())[:-1]))
    record_property("tried", f"a project with {chosen}: {passed[0]}, served")


def test_all_pairs_are_covered(record_property: Callable[[str, object], None]) -> None:
    covered, possible = pairs_covered(SETS, CHOICES)
    assert covered == possible
    record_property("tried", f"pairs of choices in installed projects: {covered} of {possible}")
