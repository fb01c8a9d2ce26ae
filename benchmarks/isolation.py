"""What isolation costs: render the template, and compare ways to keep tests apart.

uv run --no-active python -m benchmarks.isolation [--quick] [--database sqlite]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from tests.rendering import Project, install, isolate, new_directory, take_snapshot

MEASURE = Path(__file__).with_name("measure.py")

# All databases are copies of the migrated one: so the tables of the benchmark are in each.
MIGRATION = """
from alembic import op
from tests.isolation.probe import ProbeBase

revision, down_revision = "benchmark", None


def upgrade() -> None:
    ProbeBase.metadata.create_all(op.get_bind())
"""

BASELINE, HARNESS = "no isolation", "rolled back"


def measure(template: Path, directory: Path, database: str, *, quick: bool) -> dict[str, Any]:
    """Render and install a project, and return what measure.py has found there."""
    project: Project = install(template, directory, {"database": database, "example": False})
    migration = project.path / "migrations/versions/benchmark.py"
    migration.write_text(MIGRATION, encoding="utf-8")
    command = ["uv", "run", "python", str(MEASURE), database, *["--quick"] * quick]
    done = project.run(*command, timeout=3600, PYTHONPATH=str(project.path))
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def claims(found: dict[str, Any]) -> list[tuple[bool, str]]:
    """Return whether the harness keeps its promises, and what they are."""
    ms = {name: scheme["ms"] for name, scheme in found["schemes"].items()}
    harness = ms.pop(HARNESS)
    price = harness / ms.pop(BASELINE)
    size = found["sizes"]["ratio"]
    first, last = found["lengths"]["ratios"]
    left = found["lengths"]["objects"]
    return [
        (price <= 1.5, f"costs at most 1.5 times {BASELINE}: {price:.2f}"),
        *((harness < ms[name], f"{ms[name] / harness:.1f} times as fast as {name}") for name in ms),
        (size <= 1.1, f"200 tables cost at most 1.1 times 10: {size:.2f}"),
        (
            last / first <= 1.1,
            f"the last tests cost at most 1.1 times the first: {last / first:.2f}",
        ),
        (left < 0.5, f"a test leaves no objects in memory: {left:.2f}"),
    ]


def report(database: str, found: dict[str, Any]) -> str:
    """Write a table of the schemes and a list of the claims."""
    base = found["schemes"][BASELINE]["ms"]
    lines = [
        f"{database}, medians of {found['runs']} tests that write and read through the API",
        "",
        f"{'':<28}{'ms':>8}{'ratio':>8}{'statements':>12}",
    ]
    for name, scheme in found["schemes"].items():
        ms, statements = scheme["ms"], scheme["statements"]
        lines.append(f"{name:<28}{ms:>8.1f}{ms / base:>8.2f}{statements:>12}")
    few, many = found["sizes"]["ms"]
    lengths = found["lengths"]
    first, last = lengths["ratios"]
    lines += [
        "",
        f"{HARNESS}, 10 and 200 tables: {few:.1f} and {many:.1f} ms",
        f"{HARNESS}, first and last 100 of {lengths['tests']} tests: "
        f"{lengths['ms'][0]:.1f} and {lengths['ms'][1]:.1f} ms, "
        f"{first:.2f} and {last:.2f} times {BASELINE} at the same time",
        "",
    ]
    lines += [f"{'yes' if holds else 'NO':<4} {claim}" for holds, claim in claims(found)]
    return "\n".join(lines)


def main() -> None:
    """Measure on each database and print what was found."""
    parser = argparse.ArgumentParser(description="What isolation costs.")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="default: both")
    parser.add_argument("--quick", action="store_true", help="fewer runs, less exact")
    options = parser.parse_args()
    with new_directory("benchmark") as directory, pytest.MonkeyPatch.context() as patch:
        isolate(patch, directory)
        (directory / "template").mkdir()
        template = take_snapshot(directory / "template")
        for database in [options.database] if options.database else ["sqlite", "postgresql"]:
            found = measure(template, directory / database, database, quick=options.quick)
            print(report(database, found), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
