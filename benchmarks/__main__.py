"""Measure everything that docs/performance.md shows, and write the page.

uv run --no-active python -m benchmarks [--rounds 5] [--only service] [--page]
"""

import argparse
import asyncio
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks import isolation, projects, service
from benchmarks.report import MEASURED, write_page
from tests.rendering import Project, install, isolate, new_directory, take_snapshot
from tests.sharing import shared

PARTS = ["suites", "copier", "service", "memory", "isolation"]
PACKAGES = ["fastapi", "uvicorn", "sqlalchemy", "aiosqlite", "asyncpg", "pytest", "copier"]
VERSIONS = f"""
import importlib.metadata as metadata, json
found = {{}}
for name in {PACKAGES}:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def read_machine() -> dict[str, Any]:
    """Describe the machine, without its name."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.split(": ")[1] for line in cpu.splitlines() if line.startswith("model name")]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "processor": models[0] if models else platform.machine(),
        "system": platform.system(),
    }


def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Measure the parts that were asked for."""
    shared.directory = directory
    (directory / "template").mkdir()
    template = take_snapshot(directory / "template")
    found: dict[str, Any] = {}
    made: dict[str, Project] = {
        name: install(template, directory / name / "my-service", {"database": name})
        for name in ("sqlite", "postgresql")
    }
    versions = {"Python": platform.python_version()}
    for project in made.values():
        versions |= json.loads(service.run_python(project, VERSIONS))
    if "suites" in options.only:
        found["suites"] = projects.compare_suites(made, options.rounds)
    if "copier" in options.only:
        (directory / "copier").mkdir()
        found["copier"] = projects.compare_copier(directory / "copier", options.rounds)
    few = options.rounds < 5
    if "service" in options.only:
        number, rows = (500, 100_000) if few else (1000, 1_000_000)
        found["service"] = {
            name: asyncio.run(service.compare(project, options.rounds, number=number, rows=rows))
            for name, project in made.items()
        }
    if "memory" in options.only:
        many = 3000 if few else 100_000
        found["memory"] = asyncio.run(service.compare_memory(made, 1000, many))
    if "isolation" in options.only:
        found["isolation"] = isolation.ratios_of_all(template, directory / "isolation", quick=few)
    return found | {
        "rounds": options.rounds,
        "machine": read_machine(),
        "versions": dict(sorted(versions.items(), key=lambda item: item[0].lower())),
    }


def main() -> None:
    """Measure, keep what was found beside the rest, and write the page."""
    parser = argparse.ArgumentParser(description="Measure what docs/performance.md shows.")
    parser.add_argument("--rounds", type=int, default=5, help="fewer than 5 only try it out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--page", action="store_true", help="write the page again, measure nothing")
    options = parser.parse_args()
    if not options.page:
        with new_directory("benchmark") as directory, pytest.MonkeyPatch.context() as patch:
            isolate(patch, directory)
            found = measure(options, directory)
        before = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
        MEASURED.write_text(json.dumps(before | found, indent=1) + "\n", encoding="utf-8")
    missing = set(PARTS) - json.loads(MEASURED.read_text(encoding="utf-8")).keys()
    if missing:
        print(f"The page is written when these are measured too: {', '.join(sorted(missing))}")
    else:
        write_page()


if __name__ == "__main__":
    main()
