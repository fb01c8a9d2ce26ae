"""A rendered project, used as its owner would; test_pairs.py runs its checks with all answers."""

import re

import pytest

from tests.conftest import with_projects
from tests.rendering import Project, git


@pytest.fixture(autouse=True)
def left_as_it_was(project: Project) -> None:
    """Nothing that the tests before this one ran has changed a file."""
    assert git("status", "--porcelain", cwd=project.path) == ""


@with_projects("default", "postgresql")
def test_the_tests_cover_the_service(project: Project) -> None:
    said = project.check("uv", "run", "poe", "check-tests")
    assert re.search(r"^TOTAL .* 100%$", said, re.MULTILINE), said


@with_projects("postgresql")
def test_the_tests_pass_side_by_side(project: Project) -> None:
    said = project.check("uv", "run", "pytest", "-n", "2")
    assert re.search(r"\d+ passed", said)
    assert not re.search(r"\bwarnings?\b", said, re.IGNORECASE), said


@with_projects("default", "core", "postgresql")
def test_the_migrations_lead_to_the_models(project: Project) -> None:
    with project.new_database() as url:
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        said = project.check("uv", "run", "alembic", "check", DATABASE_URL=url)
        assert "No new upgrade operations detected" in said
        if project.has_example:
            project.check("uv", "run", "alembic", "downgrade", "base", DATABASE_URL=url)
            done = project.run("uv", "run", "alembic", "check", DATABASE_URL=url)
            assert done.returncode != 0
