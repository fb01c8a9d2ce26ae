"""The repository: its README, its own commands, and the template's files in place."""

import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rendering import ROOT, Project, git, run
from tests.updating import make_clone

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readmes_test_command_is_the_one_that_ci_runs() -> None:
    [command] = [
        block.strip() for block in blocks("sh") if block.endswith("uv run --no-active pytest\n")
    ]
    assert "\n" not in command
    *_, last = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert last == command
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.slow
def test_the_readmes_first_command_works(tmp_path: Path) -> None:
    [command] = [block.strip() for block in blocks("sh") if "copier copy --defaults" in block]
    assert "\n" not in command
    clone, environment = tmp_path / "copier-fastapi-async", tmp_path / "environment"
    make_clone(clone)
    assert run(sys.executable, "-m", "venv", environment, cwd=tmp_path).returncode == 0
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = run("sh", "-c", command, cwd=clone, timeout=500, env={"PATH": path})
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "my-service/uv.lock").exists()


def test_the_documentation_shows_files_that_are_rendered(rendered: Callable[..., Path]) -> None:
    project = rendered()
    home = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    [tree] = re.findall(r"^```text\n(my-service/.*?)^```", home, re.MULTILINE | re.DOTALL)
    parents = [project]
    for line in tree.splitlines()[1:]:
        depth = len(re.match(r"[│├└─ \u00a0]*", line)[0]) // 4  # type: ignore[index]
        name = line.split("─ ")[1].split()[0]
        parents[depth:] = [parents[depth - 1] / name]
        assert parents[depth].exists(), line


def test_no_lock_and_no_machine_is_in_the_repository() -> None:
    names = git("ls-files", "-z", cwd=ROOT).split("\0")
    assert not [name for name in names if name.endswith(".lock")]
    hosts = re.compile(r"pythonhoste[d]|\bpyp[i]\.\w|/wor[k]/|\b/roo[t]/|/opt/pyp[i]")
    for name in names:
        if name and (ROOT / name).exists():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not hosts.search(text), f"{name}: {hosts.search(text)}"


def requirements(pyproject: str) -> set[str]:
    """Return the names of the packages that a rendered pyproject.toml requires."""
    read = tomllib.loads(pyproject)
    listed = [*read["project"]["dependencies"], *read["dependency-groups"]["dev"]]
    return {re.split(r"[\[>=<]", each)[0] for each in listed}


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_service_takes_the_name_of_what_it_depends_on(
    client: str, database: str, rendered: Callable[..., Path]
) -> None:
    macros = (ROOT / "macros.jinja").read_text(encoding="utf-8")
    taken = re.findall(r'"([\w-]+)"', macros.split("TAKEN = [")[1].split("]")[0])
    project = rendered(http_client=client, database=database)
    assert requirements((project / "pyproject.toml").read_text()) <= set(taken)


def test_all_python_is_formatted_and_linted_in_place() -> None:
    strictly = ["check", "--config", "ruff.toml", "template"]
    for command in (["format", "--diff"], ["check"], strictly):
        done = run(sys.executable, "-m", "ruff", *command, cwd=ROOT)
        assert done.returncode == 0, done.stdout


def test_the_types_of_the_tests_agree() -> None:
    done = run(sys.executable, "-m", "mypy", cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.ci
def test_the_types_of_the_template_agree_in_place(default_project: Project) -> None:
    # The few modules with Jinja are missing here, so their definitions have the type Any;
    # rendered projects are checked with them.
    mypy = default_project.path / ".venv/bin/mypy"
    options = ("--disable-error-code=import-not-found", "--no-warn-return-any")
    done = run(mypy, *options, "--allow-subclassing-any", cwd=ROOT / "template")
    assert done.returncode == 0, done.stdout


def test_the_rendered_project_does_not_need_this_one(default_project: Project) -> None:
    said = default_project.check("uv", "run", "python", "-c", "import sys; print(sys.prefix)")
    assert Path(said.strip().splitlines()[-1]).is_relative_to(default_project.path)
