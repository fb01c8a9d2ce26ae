"""A rendered project, used as its owner would; test_pairs.py runs its checks with all answers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import copied
from tests.rendering import Project, git


@pytest.fixture(autouse=True)
def left_as_it_was(project: Project) -> None:
    """Nothing that the tests before this one ran has changed a file."""
    assert git("status", "--porcelain", cwd=project.path) == ""


@with_projects("default", "other", ci=["core", "postgresql"])
def test_all_checks_pass_and_the_tests_cover_the_service(
    project: Project, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    copy = Project(copied(project, tmp_path / "copy"), project.answers, project.path)
    said = copy.check("uv", "run", "poe", "check")
    assert not re.search(r"\bwarnings?\b", said, re.IGNORECASE), said
    if project.has_example:
        assert re.search(r"^TOTAL .* 100%$", said, re.MULTILINE), said
    passed = re.search(r"\d+ passed", said)
    assert passed
    record_property("tried", f"all checks with {project.answers or 'the defaults'}: {passed[0]}")


@with_projects("postgresql")
def test_the_tests_pass_side_by_side(project: Project) -> None:
    said = project.check("uv", "run", "pytest", "-n", "2")
    assert re.search(r"\d+ passed", said)
    assert not re.search(r"\bwarnings?\b", said, re.IGNORECASE), said


@with_projects("core", "postgresql", ci=["default"])
def test_the_migrations_lead_to_the_models(project: Project) -> None:
    with project.new_database() as url:
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        said = project.check("uv", "run", "alembic", "check", DATABASE_URL=url)
        assert "No new upgrade operations detected" in said
        if project.has_example:
            project.check("uv", "run", "alembic", "downgrade", "base", DATABASE_URL=url)
            done = project.run("uv", "run", "alembic", "check", DATABASE_URL=url)
            assert done.returncode != 0
