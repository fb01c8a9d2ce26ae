"""The tests of a project, and rendering and updating one."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.rendering import Project, commit_all, git, render, run, take_snapshot

# What the default project depends on, without the tools for its development.
DEPENDENCIES = (
    "fastapi, fastapi_cli.cli, pydantic_settings, sqlalchemy.ext.asyncio, alembic.command, "
    "structlog, aiosqlite, email_validator, python_multipart, pwdlib.hashers.argon2, jwt, "
    "pyrate_limiter, aiosmtplib, httpx2, stamina, pgqueuer, opentelemetry.trace"
)
ONE_TEST = "tests/core/test_health.py::test_service_is_ready_when_its_database_answers"
ONE_CORE = ("taskset", "--cpu-list", "0")
Step = Callable[[], object]


def seconds(step: Step) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleaved(rounds: int, steps: dict[str, Step]) -> dict[str, list[float]]:
    """Take the steps in turns, forwards and backwards; return the seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(steps[name]))
    return times


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of what was measured in the same round."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: median(taken) for name, taken in times.items()}


def compare_suites(projects: dict[str, Project], rounds: int) -> dict[str, Any]:
    """Time the tests of a project on one core, and on two; and one test against an import."""
    sqlite, postgresql = projects["sqlite"], projects["postgresql"]
    pytest = ("uv", "run", "pytest", "-q")
    steps: dict[str, Step] = {
        "one core": lambda: sqlite.check(*ONE_CORE, *pytest),
        "two workers": lambda: sqlite.check(*pytest, "-n", "2"),
        "one test, SQLite": lambda: sqlite.check(*pytest, ONE_TEST),
        "one test, PostgreSQL": lambda: postgresql.check(*pytest, ONE_TEST),
        "import": lambda: sqlite.check("uv", "run", "python", "-c", f"import {DEPENDENCIES}"),
    }
    for step in steps.values():  # writes bytecode
        step()
    times = interleaved(rounds, steps)
    return {
        "seconds": medians(times),
        "two workers": median_ratio(times["one core"], times["two workers"]),
        "one test": median_ratio(times["one test, SQLite"], times["import"]),
        "postgresql": median(
            more - less
            for more, less in zip(
                times["one test, PostgreSQL"], times["one test, SQLite"], strict=True
            )
        ),
    }


def make_small_template(directory: Path) -> Path:
    """Make a template of one file, with two releases."""
    directory.mkdir()
    (directory / "template").mkdir()
    for number, text in enumerate(("one", "two"), start=1):
        (directory / "copier.yml").write_text(
            "_subdirectory: template\nname:\n  type: str\n  default: Ada\n", encoding="utf-8"
        )
        answers = directory / "template/{{ _copier_conf.answers_file }}.jinja"
        answers.write_text("{{ _copier_answers|to_nice_yaml }}", encoding="utf-8")
        file = directory / "template/file.txt.jinja"
        file.write_text(f"{{{{ name }}}} {text}\n", encoding="utf-8")
        commit_all(directory, text)
        git("tag", f"v{number}.0.0", cwd=directory)
    return directory


def copier(*arguments: str | Path, cwd: Path) -> None:
    """Run Copier as a user does."""
    command = (sys.executable, "-m", "copier", *arguments)
    done = run(*command, cwd=cwd, env={"PATH": os.environ["PATH"]})
    if done.returncode != 0:
        raise SystemExit(done.stdout)


def make_two_releases(directory: Path) -> Path:
    """Make a repository with the template as it is now, and once more with a change."""
    directory.mkdir()
    take_snapshot(directory)
    with (directory / "template/ruff.toml").open("a", encoding="utf-8") as file:
        file.write("# Changed.\n")
    commit_all(directory, "Change")
    git("tag", "v1000.0.0", cwd=directory)
    return directory


def compare_copier(directory: Path, rounds: int) -> dict[str, Any]:
    """Compare `copier copy` and `copier update` with a template of one file, and update.py."""
    large = make_two_releases(directory / "large")
    small = make_small_template(directory / "small")
    project = Project(render(large, directory / "project", {}, "v999.0.0"), {})
    with (project.path / "poe_tasks.toml").open("a", encoding="utf-8") as tasks:
        tasks.write('\n[tool.poe.tasks.check]\ncmd = "true"\n')
    commit_all(project.path, "Start")
    other = directory / "other"
    copier("copy", "--quiet", "--defaults", "--vcs-ref=v1.0.0", small, other, cwd=directory)
    commit_all(other, "Start")
    work = directory / "work"

    def copied(template: Path) -> Step:
        def step() -> None:
            shutil.rmtree(work, ignore_errors=True)
            copier("copy", "--quiet", "--defaults", template, work, cwd=directory)

        return step

    def updated(start: Path, *command: str) -> Step:
        def step() -> None:
            shutil.rmtree(work, ignore_errors=True)
            git("clone", "--quiet", start, work, cwd=directory)
            done = run(*command, cwd=work)
            if done.returncode != 0:
                raise SystemExit(done.stdout)

        return step

    copier_update = (sys.executable, "-m", "copier", "update", "--quiet", "--defaults")
    times = interleaved(
        rounds,
        {
            "copy": copied(large),
            "copy of one file": copied(small),
            "update": updated(project.path, *copier_update),
            "update of one file": updated(other, *copier_update),
            "update.py": updated(project.path, "uv", "run", "scripts/update.py"),
        },
    )
    return {
        "seconds": medians(times),
        "copy": median_ratio(times["copy"], times["copy of one file"]),
        "update": median_ratio(times["update"], times["update of one file"]),
        "update.py": median_ratio(times["update.py"], times["update"]),
    }
