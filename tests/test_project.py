"""A rendered project, used as its owner would."""

import re

import pytest

from tests.rendering import Project, git

WARNING = re.compile(r"\bwarnings?\b", re.IGNORECASE)


@pytest.fixture(autouse=True)
def left_as_it_was(project: Project) -> None:
    """Nothing that the tests before this one ran has changed a file."""
    assert git("status", "--porcelain", cwd=project.path) == ""


def test_the_formatter_changes_nothing(project: Project) -> None:
    project.check("uv", "run", "ruff", "format", "--diff")


def test_the_linter_finds_nothing(project: Project) -> None:
    project.check("uv", "run", "ruff", "check")


def test_the_types_agree(project: Project) -> None:
    project.check("uv", "run", "mypy")


def test_the_tests_pass_without_warnings_and_cover_the_service(project: Project) -> None:
    said = project.check("uv", "run", "poe", "check-tests")
    assert "100%" in said
    assert not WARNING.search(said), said


def test_the_tests_pass_side_by_side(project: Project) -> None:
    said = project.check("uv", "run", "pytest", "-n", "2")
    assert re.search(r"\d+ passed", said)
    assert not WARNING.search(said), said


def test_uv_says_nothing_against_the_project(project: Project) -> None:
    assert not WARNING.search(project.check("uv", "lock", "--check"))


def test_the_migrations_lead_to_the_models(project: Project) -> None:
    with project.new_database() as url:
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        said = project.check("uv", "run", "alembic", "check", DATABASE_URL=url)
        assert "No new upgrade operations detected" in said
        if project.has_example:
            project.check("uv", "run", "alembic", "downgrade", "base", DATABASE_URL=url)
            done = project.run("uv", "run", "alembic", "check", DATABASE_URL=url)
            assert done.returncode != 0
