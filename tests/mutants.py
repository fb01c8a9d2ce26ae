"""Plant faults in copies of an installed project, for the project's own tests to find."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.rendering import Project, run


class Mutant(NamedTuple):
    """A fault: a text in the files that match a glob, and what replaces it."""

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
    """Copy the project's files to `directory` unless it exists; return it."""
    if not directory.exists():
        # Copy the bytecode too, which Python ignores if a file has been edited since; but not the
        # files that other workers are writing now.
        left_out = shutil.ignore_patterns(
            ".venv", ".git", ".*_cache", ".coverage", ".coverage.*", "*.pyc.*"
        )
        shutil.copytree(project.path, directory, ignore=left_out)
    return directory


def pytest_of(project: Project) -> tuple[str, ...]:
    """Return the command that runs pytest with the project's environment."""
    python = project.path / ".venv" / "bin" / "python"
    return (str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider")


def run_tests(project: Project, directory: Path, *options: str, **env: str) -> tuple[int, str]:
    """Run pytest in a copy, with the project's environment; return the exit code and the output."""
    done = run(*pytest_of(project), *options, cwd=directory, env=env)
    return done.returncode, done.stdout


def run_with(
    mutant: Mutant, project: Project, directory: Path, *options: str
) -> tuple[int, str, list[str]]:
    """Plant a fault in a copy, and run tests in order, until the first failure.

    Return the exit code, the output, and the tests that failed.
    """
    copy = copied(project, directory)
    plant(mutant, copy)
    code, output = run_tests(project, copy, "-x", "-rfE", "-p", "no:randomly", *options)
    return code, output, failures(output)


def failures(output: str) -> list[str]:
    """Return the tests that failed, in order, from the output of `pytest -rfE`."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+::\S+)", output, re.MULTILINE)
