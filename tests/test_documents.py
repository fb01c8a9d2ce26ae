"""The snippets and commands of the documentation run, or say why they do not."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.conftest import PROJECTS
from tests.documents import Block, Reader, blocks_of, commands_of, pages, read_blocks
from tests.mutants import copied, run_tests
from tests.rendering import ROOT, Project, commit_all, git, new_directory, render
from tests.serving import free_port
from tests.updating import edit, make_clone

HOW_TO = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "docs/how-to").glob("*.md")
    if "```" in page.read_text(encoding="utf-8")
)
# The tests below and test_tutorial.py follow these pages.
EXECUTED = {"docs/tutorial.md", *HOW_TO}
SHOWN_ONLY = {"text", "json", "mermaid"}


def is_accounted_for(block: Block) -> bool:
    """Return whether an existing test runs a block, or the block says why none does."""
    if block.directives.get("not run"):
        return True
    if by := block.directives.get("run by"):
        file, _, test = by.partition("::")
        return f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
    return block.page in EXECUTED


@pytest.mark.parametrize("page", list(pages()))
def test_every_snippet_is_run_or_says_why_not(page: str) -> None:
    forgotten = [
        block.where
        for block in blocks_of(page)
        if block.language not in SHOWN_ONLY and not is_accounted_for(block)
    ]
    assert forgotten == []


def test_forgotten_snippet_is_found() -> None:
    [block] = read_blocks("```sh\nrm -rf /\n```\n", "README.md")
    assert not is_accounted_for(block)
    [block] = read_blocks("<!-- not run: never -->\n```sh\nrm -rf /\n```\n", "README.md")
    assert is_accounted_for(block)
    [block] = read_blocks("<!-- run by: tests/conftest.py::no -->\n```sh\nls\n```\n", "README.md")
    assert not is_accounted_for(block)


IMPORTS = """
import asyncio
from unittest.mock import AsyncMock

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.jobs import send_welcome
from app.users.models import User
from tests.harness.jobs import JobQueue
from tests.http_client import AsyncClient

ADA = {"email": "ada@example.com", "password": "correct horse battery"}
"""


def test_the_tests_on_the_first_pages_pass(default_project: Project, tmp_path: Path) -> None:
    """These pages leave out the imports of their tests."""
    copy = copied(default_project, tmp_path / "copy")
    this = "tests/test_documents.py::test_the_tests_on_the_first_pages_pass"
    shown = [
        block
        for page in ("README.md", "docs/isolation.md", "docs/jobs.md")
        for block in blocks_of(page)
        if block.directives.get("run by") == this
    ]
    assert {block.page for block in shown} == {"README.md", "docs/isolation.md", "docs/jobs.md"}
    text = "\n\n".join([IMPORTS, *(block.text for block in shown)])
    (copy / "tests/test_shown.py").write_text(text, encoding="utf-8")
    code, said = run_tests(default_project, copy, "tests/test_shown.py")
    assert code == 0, said
    assert f"{text.count('async def test_')} passed" in said


# ---- How-to: follow each page in a project with the example ----

# These change their environment, so they get their own.
CHANGING = {"docs/how-to/delete-the-example.md", "docs/how-to/sqlite-to-postgresql.md"}
LONG = {"docs/how-to/update.md"}
"""It runs an update with all of its checks."""
ONLY = {
    "docs/how-to/postgresql-without-docker.md": "postgresql",
    "docs/how-to/sqlite-to-postgresql.md": "default",
}
# An update runs all checks; here, with few tests.
FEW = "-k 'test_health or items' --cov-fail-under=0"


def cases() -> Iterator[ParameterSet]:
    """Yield each page with each database: one database for CI, the other for releases."""
    for page in HOW_TO:
        for name in ("default", "postgresql"):
            if ONLY.get(page, name) == name:
                is_slow = page in CHANGING | LONG or name != ONLY.get(page, "default")
                mark = pytest.mark.slow if is_slow else pytest.mark.ci
                yield pytest.param(name, page, marks=mark, id=f"{Path(page).stem}-{name}")


@pytest.fixture(scope="session")
def clone(isolated: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the template, like a user's; its branch `present` has no later release."""
    directory = tmp_path_factory.mktemp("clone") / "copier-fastapi-async"
    make_clone(directory)
    git("branch", "present", cwd=directory)
    return directory


def release(clone: Path) -> None:
    """Make a release that gives tests more time, unless it exists."""
    if "v99.0.0" not in git("tag", cwd=clone):
        edit(clone / "template/pytest.toml.jinja", '^timeout = "60"$', 'timeout = "90"')
        commit_all(clone, "Give tests more time")
        git("tag", "v99.0.0", cwd=clone)


@pytest.mark.parametrize(("name", "page"), list(cases()))
def test_the_page_can_be_followed(
    name: str,
    page: str,
    clone: Path,
    installed: Callable[[str], Project],
    record_property: Callable[[str, object], None],
) -> None:
    project = installed(name)
    with new_directory("page") as directory:
        service = render(clone, directory / "my-service", PROJECTS[name], "present")
        shutil.copy(project.path / "uv.lock", service)
        commit_all(service, "Start")
        env = {} if page in CHANGING else {"UV_PROJECT_ENVIRONMENT": str(project.path / ".venv")}
        if "scripts/update.py" in (ROOT / page).read_text(encoding="utf-8"):
            release(clone)
            env["PYTEST_ADDOPTS"] = FEW
        if name == "postgresql":  # on a free port
            server = f"postgres:postgres@localhost:{free_port()}"
            env["DATABASE_URL"] = f"postgresql+asyncpg://{server}/my-service"
        with Reader(service, project.database, env) as reader:
            reader.follow([block for block in blocks_of(page) if "run by" not in block.directives])
    record_property("tried", f"{page} with {project.database}: {reader.commands} commands")


# ---- The README of a project ----

# The test that runs each command, or why none does.
COMMANDS = {
    "uv run poe database": "tests/test_tutorial.py::test_the_tutorial_works",
    "uv run alembic upgrade head": "tests/test_tutorial.py::test_the_tutorial_works",
    "uv run fastapi dev": "tests/test_tutorial.py::test_the_tutorial_works",
    "uv run pytest": "tests/test_patterns.py::test_the_commands_run_the_tests",
    "uv run poe check": "tests/test_tutorial.py::test_the_tutorial_works",
    "uv run poe format": "tests/test_tutorial.py::test_the_tutorial_works",
    "uv run poe audit": "not run: it asks osv.dev",
    "uv run poe worker": "not run: tests/test_jobs.py starts workers in another way",
    "uv run alembic revision": "tests/test_tutorial.py::test_the_tutorial_works",
    "uv run scripts/update.py --dry-run": "tests/test_documents.py::test_the_page_can_be_followed",
    "uv run scripts/update.py": "tests/test_documents.py::test_the_page_can_be_followed",
    "cp .env.example .env": "not run: it prepares the next command",
    "docker compose up": "not run: it needs a container engine",
}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_every_command_of_a_projects_readme_is_run_or_says_why_not(
    rendered: Callable[..., Path], database: str
) -> None:
    readme = (rendered(database=database) / "README.md").read_text(encoding="utf-8")
    blocks = read_blocks(readme, "README.md")
    assert {block.language for block in blocks} == {"sh", "text"}
    said = [line for block in blocks if block.language == "sh" for line in commands_of(block)]
    assert len(said) > len(COMMANDS) - 2
    for line in said:
        [run_by, *_] = [value for name, value in COMMANDS.items() if line.startswith(name)]
        file, _, test = run_by.partition("::")
        is_run = test and f"def {test}" in (ROOT / file).read_text(encoding="utf-8")
        assert is_run or run_by.startswith("not run: "), line
