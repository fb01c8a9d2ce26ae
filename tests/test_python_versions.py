"""Python versions: all files that must name them agree."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.rendering import ROOT, run

MACROS = (ROOT / "macros.jinja").read_text(encoding="utf-8")
PYTHONS = re.findall(r'"([\d.]+)"', MACROS.split("PYTHONS = [")[1].split("]")[0])
OLDEST = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))["python_version"]
CLASSIFIER = "Programming Language :: Python :: "

Rendered = Callable[..., Path]


def read_toml(file: Path) -> Any:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def read_yaml(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def named_in(file: Path) -> set[str]:
    """Return the versions of Python 3 that a file mentions, except as an answer to give."""
    pattern = r"(?<!python_version=)(?<![\d.])3\.\d\d\b"
    return set(re.findall(pattern, file.read_text(encoding="utf-8")))


@pytest.fixture(params=OLDEST["choices"])
def oldest(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def supported(oldest: str) -> list[str]:
    return PYTHONS[PYTHONS.index(oldest) :]


def test_the_oldest_may_be_any() -> None:
    assert sorted(PYTHONS, key=lambda version: int(version.removeprefix("3."))) == PYTHONS
    assert OLDEST["choices"] == PYTHONS  # so test_pairs.py runs all checks on each
    assert OLDEST["default"] == PYTHONS[0]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_is_declared_is_what_is_supported(
    database: str, oldest: str, supported: list[str], rendered: Rendered
) -> None:
    metadata = read_toml(rendered(python_version=oldest, database=database) / "pyproject.toml")
    allowed = SpecifierSet(metadata["project"]["requires-python"])
    assert [each for each in PYTHONS if f"{each}.0" in allowed] == supported
    named = [each for each in metadata["project"]["classifiers"] if CLASSIFIER in each]
    assert named == [CLASSIFIER + each for each in supported]


def test_a_python_without_the_embedded_server_is_not_taken_for_postgresql(
    rendered: Rendered,
) -> None:
    """Otherwise, uv would use the newest one that it finds, and fail to install."""
    metadata = read_toml(rendered(database="postgresql") / "pyproject.toml")
    [too_new] = re.findall(r'set TOO_NEW = "([\d.]+)"', MACROS)
    assert f"{too_new}.0" not in SpecifierSet(metadata["project"]["requires-python"])


def test_ci_and_the_container_run_the_newest(oldest: str, rendered: Rendered) -> None:
    """Both use the same version, so CI tests what is deployed."""
    newest = PYTHONS[-1]
    github, gitlab = (rendered(python_version=oldest, ci=ci) for ci in ("github", "gitlab"))
    job = read_yaml(github / ".github/workflows/ci.yml")["jobs"]["check"]
    assert job["env"]["UV_PYTHON"] == newest
    assert "strategy" not in job
    jobs = read_yaml(gitlab / ".gitlab-ci.yml")
    assert jobs["check"]["image"] == f"python:{newest}-slim"
    assert jobs["template"]["image"] == f"python:{newest}"
    dockerfile = (github / "Dockerfile").read_text(encoding="utf-8")
    images = re.findall(r"^FROM (python:\S+)", dockerfile, re.MULTILINE)
    assert images == [f"python:{newest}-slim-trixie"] * 2


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_linter_writes_for_the_oldest(database: str, oldest: str, rendered: Rendered) -> None:
    project = rendered(python_version=oldest, database=database)
    done = run("uv", "run", "--project", ROOT, "ruff", "check", "--show-settings", cwd=project)
    assert done.returncode == 0, done.stdout
    assert f"linter.unresolved_target_version = {oldest}\n" in done.stdout


def test_the_type_checker_checks_for_the_python_that_runs_it(rendered: Rendered) -> None:
    """This allows a developer's version and CI's to differ."""
    assert "python_version" not in (rendered() / "mypy.ini").read_text(encoding="utf-8")


def test_no_other_file_names_a_python(oldest: str, rendered: Rendered) -> None:
    """For example, the README: an update would not reach it."""
    project = rendered(python_version=oldest)
    naming = {
        file.relative_to(project).as_posix()
        for file in project.rglob("*")
        if file.is_file() and named_in(file)
    }
    ci = ".github/workflows/ci.yml"
    script = "scripts/update.py"  # requires what Copier needs, in its own environment
    assert naming == {".copier-answers.yml", "pyproject.toml", ci, "Dockerfile", script}
    assert named_in(project / script) == {PYTHONS[0]}


def test_the_template_itself_says_the_same() -> None:
    metadata = read_toml(ROOT / "pyproject.toml")["project"]
    assert metadata["requires-python"] == f">={PYTHONS[0]}"
    matrix = read_yaml(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"You need Python {PYTHONS[0]} and git" in readme
    assert f"It is tested on Linux, with Python {PYTHONS[0]} to {PYTHONS[-1]}." in readme
    assert named_in(ROOT / "README.md") == {PYTHONS[0], PYTHONS[-1]}
    assert named_in(ROOT / ".ci/run") == {PYTHONS[0]}
