"""Faults planted in copies of an installed project, for the project's own tests to find."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.rendering import Project, run


class Mutant(NamedTuple):
    """A fault: a text in the files of a glob, and what stands there instead."""

    name: str
    files: str
    text: str
    replacement: str


def plant(mutant: Mutant, directory: Path) -> None:
    """Put the fault into all files that have its text."""
    found = False
    for file in directory.glob(mutant.files):
        text = file.read_text(encoding="utf-8")
        if mutant.text in text:
            file.write_text(text.replace(mutant.text, mutant.replacement), encoding="utf-8")
            found = True
    assert found, f"{mutant.files} no longer has the text: {mutant.text}"


def copied(project: Project, directory: Path) -> Path:
    """Copy the project's files to `directory`, unless they are there, and return that."""
    if not directory.exists():
        # With the bytecode, which Python passes over where a file has been edited since; but not
        # what other workers are writing just now.
        left_out = shutil.ignore_patterns(
            ".venv", ".git", ".*_cache", ".coverage", ".coverage.*", "*.pyc.*"
        )
        shutil.copytree(project.path, directory, ignore=left_out)
    return directory


def run_tests(project: Project, directory: Path, *options: str, **env: str) -> tuple[int, str]:
    """Run pytest in a copy, with the project's environment; return exit code and output."""
    python = project.path / ".venv" / "bin" / "python"
    command = (str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = run(*command, *options, cwd=directory, env=env)
    return done.returncode, done.stdout


def run_with(
    mutant: Mutant, project: Project, directory: Path, *options: str
) -> tuple[int, str, list[str]]:
    """Plant a fault in a copy, and run tests to the first failure, which is always the same.

    Return exit code, output, and the tests that failed.
    """
    copy = copied(project, directory)
    plant(mutant, copy)
    code, output = run_tests(project, copy, "-x", "-rfE", "-p", "no:randomly", *options)
    return code, output, failures(output)


def failures(output: str) -> list[str]:
    """Name the tests that failed, in their order, from what `pytest -rfE` says."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+::\S+)", output, re.MULTILINE)
