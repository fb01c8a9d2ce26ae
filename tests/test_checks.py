"""One command runs all checks that CI runs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.mutants import copied
from tests.rendering import Project


@pytest.fixture
def project(installed: Callable[[str], Project], tmp_path: Path) -> Project:
    """A project to break."""
    project = installed("default")
    return Project(copied(project, tmp_path / "copy"), project.answers, project.path)


@pytest.mark.ci
def test_it_goes_on_to_the_last_check_and_fails_when_one_has(project: Project) -> None:
    (project.path / "app/broken.py").write_text("import os\nx:str = 1\n", encoding="utf-8")
    (project.path / "tests/test_broken.py").write_text("def test_no():\n    assert 0\n")
    tasks = project.path / "poe_tasks.toml"
    own = "sequence = [{ cmd = \"python -c 'print(6 * 7); raise SystemExit(3)'\" }]"
    tasks.write_text(tasks.read_text().replace("sequence = []", own))

    done = project.run("uv", "run", "poe", "check", PYTEST_ADDOPTS="tests/test_broken.py")

    assert done.returncode != 0
    last_line = done.stdout.splitlines()[-1]
    for name in ("format", "lint", "types", "tests", "own"):
        assert f"check-{name}" in last_line, done.stdout
    assert "check-lock" not in last_line
    said = done.stdout.replace("\\", "/")
    assert re.search(r"would be reformatted\n +--> app/broken\.py", said)
    assert "F401" in said
    assert "Incompatible types in assignment" in done.stdout
    assert "test_no" in done.stdout
    assert "42" in done.stdout.splitlines()


@pytest.mark.ci
def test_code_that_no_test_runs_is_reported(project: Project) -> None:
    (project.path / "app/untested.py").write_text("WORDS = 1\n", encoding="utf-8")
    said = project.check(
        "uv", "run", "poe", "check-tests", PYTEST_ADDOPTS="tests/core/test_schemas.py"
    )
    assert "app/untested.py" in said.replace("\\", "/")


def test_the_test_client_of_starlette_is_refused_with_the_reason(project: Project) -> None:
    file = project.path / "tests/test_sync.py"
    file.write_text("from fastapi.testclient import TestClient\n\nTestClient\n", encoding="utf-8")
    done = project.run("uv", "run", "ruff", "check", "tests/test_sync.py")
    assert done.returncode != 0
    assert "starts a second event loop: use the `client` fixture" in done.stdout


def test_format_repairs_what_can_be_repaired(project: Project) -> None:
    file = project.path / "app/untidy.py"
    file.write_text('"""Untidy."""\nimport os\nx = {  "a":1 }\n', encoding="utf-8")
    project.check("uv", "run", "poe", "format")
    assert file.read_text(encoding="utf-8") == '"""Untidy."""\n\nx = {"a": 1}\n'


def test_ci_runs_it_and_nothing_else(project: Project) -> None:
    workflow = yaml.safe_load((project.path / ".github/workflows/ci.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    assert commands == ["uv sync", "uv run poe check"]
