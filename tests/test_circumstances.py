"""Where a project is rendered to and from, and what happens if something interrupts this."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pexpect
import pytest
import yaml

from tests.interview import ASKED, Interview
from tests.rendering import commit_all, git, render, run
from tests.sharing import shared

COPY = (sys.executable, "-m", "copier", "copy")
FILE = "app/core/health.py"  # the template's

Rendered = Callable[..., Path]


def copy(template: Path, destination: Path, *options: str) -> CompletedProcess[str]:
    """Render with all defaults, without a terminal."""
    return run(*COPY, "--defaults", *options, template, destination, cwd=destination.parent)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def committed(rendered: Rendered) -> Path:
    project = rendered()
    commit_all(project, "Start")
    return project


# ---- Interrupted ----


@pytest.mark.parametrize("question", [ASKED[0], ASKED[-1]])
def test_ctrl_c_at_a_question_leaves_nothing(question: str, template: Path, tmp_path: Path) -> None:
    person = Interview(template, "my-service", cwd=tmp_path)
    person.answer_rest(ASKED[: ASKED.index(question)])
    person.answer(question, "\x03")
    person.wait_for("Execution stopped by user")
    person.child.expect(pexpect.EOF)
    person.child.close()
    assert person.child.exitstatus == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.ci)]
)
def test_the_same_command_completes_what_was_interrupted(
    sign: signal.Signals, template: Path, rendered: Rendered, tmp_path: Path
) -> None:
    """Copier keeps what it has written, whatever copier.yml says: see the README."""
    project = tmp_path / "my-service"
    (project / "app").mkdir(parents=True)
    # Copier reads a file before it overwrites it: at this one, it waits for somebody to write.
    os.mkfifo(project / "app/main.py")
    process = subprocess.Popen(
        [*COPY, "--defaults", template, project],
        # A shell makes its background processes ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    with process, (project / "app/main.py").open("wb"):
        process.send_signal(sign)
        assert process.wait(60) != 0
    (project / "app/main.py").unlink()
    whole = contents(rendered())
    assert contents(project).items() < whole.items()

    done = copy(template, project)

    assert done.returncode == 0, done.stdout
    assert contents(project) == whole


# ---- Into a directory that is not empty ----


def test_the_same_answers_again_change_nothing(committed: Path, template: Path) -> None:
    done = copy(template, committed)
    assert done.returncode == 0, done.stdout
    assert "identical" in done.stdout
    assert not {"create", "conflict", "overwrite"} & set(done.stdout.split())
    assert git("status", "--porcelain", cwd=committed) == ""


@pytest.mark.parametrize("command", ["copy", "recopy"])
def test_what_was_edited_is_not_overwritten_without_a_terminal(
    command: str, committed: Path, template: Path
) -> None:
    for name in (FILE, "app/main.py", "app/users/router.py"):
        (committed / name).write_text("# mine\n", encoding="utf-8")
    edited = git("diff", cwd=committed)
    source = [template] if command == "copy" else []
    done = run(*COPY[:-1], command, "--defaults", *source, committed, cwd=committed.parent)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("Interactive session required")
    assert git("diff", cwd=committed) == edited


def test_what_was_edited_is_asked_about_in_a_terminal(committed: Path, template: Path) -> None:
    (committed / FILE).write_text("# mine\n", encoding="utf-8")
    person = Interview(template, committed.name, "--defaults", cwd=committed.parent)
    person.wait_for(f"Overwrite {FILE}?")
    person.child.send("n")
    person.finish()
    assert git("status", "--porcelain", cwd=committed) == f" M {FILE}\n"


def test_what_is_in_the_folder_stays(template: Path, rendered: Rendered, tmp_path: Path) -> None:
    own = {"README.md": b"# Mine\n", "notes/todo.txt": b"Milk\n"}
    project = tmp_path / "my-service"
    (project / "notes").mkdir(parents=True)
    for name, content in own.items():
        (project / name).write_bytes(content)
    done = copy(template, project)
    assert done.returncode == 0, done.stdout
    assert "skip" in done.stdout
    assert contents(project) == {**contents(rendered()), **own}


def test_a_file_that_is_in_the_way_is_named_and_kept(template: Path, tmp_path: Path) -> None:
    project = tmp_path / "my-service"
    project.mkdir()
    (project / "pyproject.toml").write_text("# mine\n", encoding="utf-8")
    done = copy(template, project)
    assert done.returncode == 1
    assert "pyproject.toml" in done.stdout.split("conflict")[-1]
    assert (project / "pyproject.toml").read_text(encoding="utf-8") == "# mine\n"


@pytest.mark.parametrize("destination", ["file", "file/my-service"])
def test_where_nothing_can_be_written_is_named(
    destination: str, template: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    done = run(*COPY, "--defaults", template, tmp_path / destination, cwd=tmp_path)
    assert done.returncode == 1
    last_line = done.stdout.splitlines()[-1]
    assert "Not a directory" in last_line
    assert f"{tmp_path / destination}" in last_line
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.ci
def test_blanks_and_any_letters_may_be_in_the_path(
    template: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    project = tmp_path / "Größe & Maß's" / "мой сервис 日本"
    project.parent.mkdir()
    render(template, project, {})
    shared.note_installed(project)
    for command in (
        "pytest -q tests/core/test_health.py",
        "python -c 'import app.main'",
        "alembic upgrade head",
    ):
        done = run("bash", "-c", f"uv run {command}", cwd=project)
        assert done.returncode == 0, done.stdout
        record_property("tried", f"in {project.relative_to(tmp_path)}: uv run {command}")


# ---- Not from a clone ----


@pytest.mark.ci
def test_it_renders_from_a_shallow_clone(
    template: Path, rendered: Rendered, tmp_path: Path
) -> None:
    git("clone", "--quiet", "--depth=1", template.as_uri(), tmp_path / "clone", cwd=tmp_path)
    done = copy(tmp_path / "clone", tmp_path / "my-service")
    assert done.returncode == 0, done.stdout
    made, expected = contents(tmp_path / "my-service"), contents(rendered())
    answers = yaml.safe_load(made.pop(".copier-answers.yml"))
    assert answers["_commit"] == yaml.safe_load(expected.pop(".copier-answers.yml"))["_commit"]
    assert made == expected


@pytest.mark.ci
def test_an_archive_renders_and_says_that_it_cannot_update(
    template: Path, rendered: Rendered, tmp_path: Path
) -> None:
    git("archive", f"--output={tmp_path}/template.tar", "--prefix=archive/", "HEAD", cwd=template)
    assert run("tar", "--extract", "--file=template.tar", cwd=tmp_path).returncode == 0
    project = tmp_path / "my-service"
    done = copy(tmp_path / "archive", project)
    assert done.returncode == 0, done.stdout
    assert "Updates will not work, because this copy of the template has no version" in done.stdout
    made, expected = contents(project), contents(rendered())
    assert "_commit" not in yaml.safe_load(made.pop(".copier-answers.yml"))
    assert "_commit" in yaml.safe_load(expected.pop(".copier-answers.yml"))
    assert made == expected

    commit_all(project, "Start")
    update = run(*COPY[:-1], "update", "--defaults", cwd=project)
    assert update.returncode != 0
    assert "cannot obtain old template references" in update.stdout
    assert git("status", "--porcelain", cwd=project) == ""
