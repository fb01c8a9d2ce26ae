"""What isolation costs: render the template, and compare ways to keep tests apart.

uv run --no-active python -m benchmarks.isolation [--quick] [--database sqlite]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from tests.rendering import Project, install, isolate, new_directory, take_snapshot
from tests.sharing import shared

MEASURE = Path(__file__).with_name("measure.py")

FEW_TABLES, MANY_TABLES = 10, 200

# All databases are copies of the migrated one: so the tables of the benchmark are in each.
MIGRATION = """
from alembic import op
from tests.isolation.probe import ProbeBase

revision, down_revision = "benchmark", None


def upgrade() -> None:
    ProbeBase.metadata.create_all(op.get_bind())
"""

BASELINE, ROLLED_BACK, COMMITTED = "no isolation", "rolled back", "committed"


def prepare(template: Path, directory: Path, database: str) -> Project:
    """Render and install a project that has the tables of the benchmark."""
    project: Project = install(template, directory, {"database": database, "example": False})
    migration = project.path / "migrations/versions/benchmark.py"
    migration.write_text(MIGRATION, encoding="utf-8")
    return project


def measure(project: Project, tables: int, *options: str) -> dict[str, Any]:
    """Return what measure.py has found in a project."""
    command = ["uv", "run", "python", str(MEASURE), project.database, *options]
    env = {"PYTHONPATH": str(project.path), "BENCHMARK_TABLES": str(tables)}
    done = project.run(*command, timeout=3600, **env)
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Return what each scheme costs as a multiple of no isolation."""
    times = {name: scheme["ms"] for name, scheme in found["schemes"].items()}
    return {name: taken / times[BASELINE] for name, taken in times.items()}


def claims(few: dict[str, Any], many: dict[str, Any]) -> list[tuple[bool, str]]:
    """Return whether the harness keeps its promises, and what they are."""
    kept = []
    for tables, found in ((FEW_TABLES, few), (MANY_TABLES, many)):
        for name, limit in ((ROLLED_BACK, 1.3), (COMMITTED, 1.6)):
            ratio = ratios(found)[name]
            claim = f"{name}, {tables} tables, at most {limit} times {BASELINE}: {ratio:.2f}"
            kept.append((ratio <= limit, claim))
    gathered, objects = few["gathered"], few["objects"]
    first, last = few["lengths"]["ratios"]
    left = few["lengths"]["objects"]
    return [
        *kept,
        (
            gathered["ratio"] <= 1.3,
            f"{gathered['requests']} gathered requests at most 1.3 times SQLAlchemy's recipe, "
            f"with a lock around each request: {gathered['ratio']:.2f}",
        ),
        (
            objects["ratio"] <= 1.1,
            f"{objects['objects']} objects in the test's session, at most 1.1 times none: "
            f"{objects['ratio']:.2f}",
        ),
        (
            last / first <= 1.1,
            f"the last tests at most 1.1 times the first: {last / first:.2f}",
        ),
        (left < 0.5, f"a test leaves no objects in memory: {left:.2f}"),
    ]


def report(database: str, few: dict[str, Any], many: dict[str, Any]) -> str:
    """Write a table of the schemes and a list of the claims."""
    lines = [
        f"{database}, medians of {few['runs']} tests that write and read through the API",
        "",
        f"{'':<28}{'ms':>8}{'ratio':>8}{'statements':>12}{'ratio, 200 tables':>20}",
    ]
    for name, scheme in few["schemes"].items():
        lines.append(
            f"{name:<28}{scheme['ms']:>8.1f}{ratios(few)[name]:>8.2f}{scheme['statements']:>12}"
            f"{ratios(many)[name]:>20.2f}"
        )
    lengths = few["lengths"]
    first, last = lengths["ratios"]
    lines += [
        "",
        f"{ROLLED_BACK}, first and last 100 of {lengths['tests']} tests: "
        f"{lengths['ms'][0]:.1f} and {lengths['ms'][1]:.1f} ms, "
        f"{first:.2f} and {last:.2f} times {BASELINE} at the same time",
        "",
    ]
    lines += [f"{'yes' if holds else 'NO':<4} {claim}" for holds, claim in claims(few, many)]
    return "\n".join(lines)


def ratios_of_all(template: Path, directory: Path, *, quick: bool) -> dict[str, Any]:
    """Return what each scheme costs on each database, with few tables and with many.

    `tests` is how many tests each cost is the median of.
    """
    found: dict[str, Any] = {}
    for database in ("sqlite", "postgresql"):
        project = prepare(template, directory / database, database)
        options = ["--quick"] * quick
        measured = [measure(project, tables, *options) for tables in (FEW_TABLES, MANY_TABLES)]
        found[database] = [ratios(each) for each in measured]
        found["tests"] = measured[0]["runs"]
    return found


def main() -> None:
    """Measure on each database and print what was found."""
    parser = argparse.ArgumentParser(description="What isolation costs.")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="default: both")
    parser.add_argument("--quick", action="store_true", help="fewer runs, less exact")
    options = parser.parse_args()
    with new_directory("benchmark") as directory, pytest.MonkeyPatch.context() as patch:
        isolate(patch, directory)
        shared.directory = directory
        (directory / "template").mkdir()
        template = take_snapshot(directory / "template")
        for database in [options.database] if options.database else ["sqlite", "postgresql"]:
            project = prepare(template, directory / database, database)
            quick = ["--quick"] * options.quick
            few = measure(project, FEW_TABLES, "--all", *quick)
            many = measure(project, MANY_TABLES, *quick)
            print(report(database, few, many), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
