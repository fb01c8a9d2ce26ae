"""Render hundreds of projects in the time of twenty, with the same result."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import pytest
from copier import run_copy

from tests.promises import read
from tests.rendering import Answers

COMPILED: dict[object, Any] = {}


def plain_copy(template: Path, directory: Path) -> Path:
    """Copy a template without its git repository, which Copier would clone each time."""
    return shutil.copytree(template, directory, ignore=shutil.ignore_patterns(".git"))


@contextmanager
def hurried() -> Iterator[None]:
    """Cache what Jinja compiles, and keep Copier from asking git about the files that it writes."""
    compile_text = jinja2.Environment.compile

    def compile_once(self: jinja2.Environment, source: Any, *details: Any) -> Any:
        if not isinstance(source, str):
            return compile_text(self, source, *details)
        key = (source, *details)
        if key not in COMPILED:
            COMPILED[key] = compile_text(self, source, *details)
        return COMPILED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", compile_once)
        patch.setattr("copier._main.is_git_available", lambda: False, raising=False)
        yield


def render_files(template: Path, directory: Path, answers: Answers) -> dict[str, str]:
    """Render into `directory`, read its files, and remove it."""
    with hurried():
        run_copy(str(template), directory, dict(answers), defaults=True, quiet=True)
    files = read(directory)
    shutil.rmtree(directory)
    return files
