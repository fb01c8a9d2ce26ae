"""When an update goes wrong, it ends with a clear message, and nothing is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.rendering import ROOT, Project, commit_all, git, render
from tests.sharing import shared
from tests.updating import (
    FUTURE,
    PRESENT,
    append,
    edit,
    make_small_releases,
    replace_checks,
    update,
)

DONE, TAKES_A_PERSON, REFUSED = 0, 1, 2


class Pair(NamedTuple):
    """A template, and a project at its release PRESENT."""

    template: Path
    project: Project

    @property
    def path(self) -> Path:
        return self.project.path


@pytest.fixture(scope="session")
def small_releases(releases: Path) -> Path:
    """The template with few files."""
    return shared.once("small-releases", lambda place: make_small_releases(releases, place))


@pytest.fixture(scope="session")
def original(small_releases: Path) -> Path:
    """The files of a small project."""
    return shared.once(
        "original", lambda place: render(small_releases, place, {"example": False}, PRESENT)
    )


@pytest.fixture
def pair(small_releases: Path, original: Path, tmp_path: Path) -> Pair:
    """A template and a project for the test to break."""
    path = tmp_path / "project"
    shutil.copytree(original, path)
    return paired(small_releases, Project(path, {"example": False}))


@pytest.fixture
def example_pair(releases: Path, tmp_path: Path) -> Pair:
    """A template and a project with the example."""
    return paired(releases, Project(render(releases, tmp_path / "project", {}, PRESENT), {}))


def paired(releases: Path, project: Project) -> Pair:
    template = project.path.with_name("template")
    git("clone", "--quiet", releases, template, cwd=project.path.parent)
    edit_answers(project.path, _src_path=str(template))
    commit_all(project.path, "Start")
    return Pair(template, project)


def edit_answers(path: Path, **values: object) -> None:
    file = path / ".copier-answers.yml"
    answers = yaml.safe_load(file.read_text(encoding="utf-8")) | values
    file.write_text(yaml.safe_dump(answers), encoding="utf-8")


def state(path: Path) -> object:
    """Return what must not change: files, index, branches, worktrees, operations in progress."""
    files = {
        file.relative_to(path): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and ".git" not in file.relative_to(path).parts
    }
    in_git = [
        git(*command.split(), cwd=path)
        for command in ("status --porcelain", "rev-parse HEAD", "branch", "stash list")
    ]
    return files, in_git, git("worktree", "list", cwd=path).count("\n")


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    before = state(path)
    yield
    assert state(path) == before


def check_refused(pair: Pair, *sentences: str, options: tuple[str, ...] = ()) -> str:
    """Check that an update fails with these sentences, and leaves the project unchanged."""
    with unchanged(pair.path):
        code, said = update(pair.project, *options)
    assert code == REFUSED, said
    for sentence in (*sentences, "Nothing was changed."):
        assert sentence in said
    assert "Traceback" not in said
    return said


# ---- The project ----


def test_changes_that_are_not_committed(pair: Pair) -> None:
    append(pair.path / "app/main.py", "\n")
    (pair.path / "new.txt").touch()
    check_refused(pair, "uncommitted changes", " M app/main.py", "?? new.txt", "git stash")


def test_no_git(pair: Pair) -> None:
    shutil.rmtree(pair.path / ".git")
    code, said = update(pair.project)
    assert code == REFUSED
    assert "git init && git add --all" in said


def test_no_git_on_the_machine(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, program in {"uv": shutil.which("uv"), "python3": sys.executable}.items():
        assert program
        (tmp_path / "bin" / name).symlink_to(Path(program).resolve())
    code, said = update(pair.project, "--check", PATH=str(tmp_path / "bin"))
    assert code == REFUSED
    assert "needs git, which is not installed" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("action", "begin"),
    [
        ("rebase", "git -c sequence.editor='sed -i s/pick/edit/' rebase --quiet -i HEAD~1"),
        ("merge", "git merge --quiet --no-commit --no-ff --strategy=ours other"),
        (
            "cherry-pick",
            "git cherry-pick --no-commit HEAD; git rev-parse HEAD > .git/CHERRY_PICK_HEAD",
        ),
        ("bisect", "git bisect start"),
    ],
)
def test_something_else_is_under_way(pair: Pair, action: str, begin: str) -> None:
    git("branch", "other", cwd=pair.path)
    append(pair.path / "README.md", "More.\n")
    commit_all(pair.path, "More")
    git("checkout", "--quiet", "other", cwd=pair.path)
    append(pair.path / "CHANGELOG.md", "More.\n")
    commit_all(pair.path, "Other")
    git("checkout", "--quiet", "main", cwd=pair.path)
    pair.project.run("sh", "-c", begin)
    check_refused(pair, f"A {action} is in progress")


def test_no_answers_file(pair: Pair) -> None:
    (pair.path / ".copier-answers.yml").unlink()
    commit_all(pair.path, "Tidy up")
    check_refused(pair, ".copier-answers.yml is missing", "git log -- .copier-answers.yml")


@pytest.mark.parametrize("content", ["[", "", "database: sqlite\n", "- a\n"])
def test_answers_that_do_not_say_where_the_project_comes_from(pair: Pair, content: str) -> None:
    (pair.path / ".copier-answers.yml").write_text(content, encoding="utf-8")
    commit_all(pair.path, "Edit")
    check_refused(pair, "does not name the template and the release")


# Settings that make Copier overlook what it cannot merge, or write it differently.
SETTINGS = {
    "status.showUntrackedFiles": "no",
    "merge.conflictStyle": "diff3",
    "apply.whitespace": "error-all",
    "core.whitespace": "tab-in-indent,trailing-space",
    "diff.noprefix": "true",
    "core.quotePath": "false",
    "color.ui": "always",
}


@pytest.mark.parametrize(
    "where", ["the user's", pytest.param("the project's", marks=pytest.mark.ci)]
)
@pytest.mark.ci
def test_no_setting_of_git_changes_how_an_update_merges(
    pair: Pair, tmp_path: Path, where: str
) -> None:
    edit(pair.path / "ruff.toml", r"\A#", "# Ours.")
    append(pair.path / "tests/conftest.py", "\n# Ours.   \n")
    commit_all(pair.path, "Edit")
    users = tmp_path / "gitconfig"
    for name, value in SETTINGS.items():
        file = users if where == "the user's" else pair.path / ".git/config"
        git("config", "--file", file, name, value, cwd=tmp_path)
    (tmp_path / "attributes").write_text("*.toml -diff\n*.py merge=union\n", encoding="utf-8")
    (tmp_path / "ignored").write_text("docs\n*.toml\n", encoding="utf-8")
    git("config", "--file", users, "core.attributesFile", tmp_path / "attributes", cwd=tmp_path)
    git("config", "--file", users, "core.excludesFile", tmp_path / "ignored", cwd=tmp_path)

    code, said = update(pair.project, GIT_CONFIG_GLOBAL=str(users))

    assert code == TAKES_A_PERSON, said
    unmerged = git("diff", "--name-only", "--diff-filter=U", cwd=pair.path).split()
    assert unmerged == ["ruff.toml", "tests/conftest.py"]
    for name in unmerged:
        text = (pair.path / name).read_text(encoding="utf-8")
        assert re.findall(r"^([<|=>])\1{6}", text, re.MULTILINE) == ["<", "=", ">"]
    assert not list(pair.path.rglob("*.rej"))
    assert (pair.path / "docs/audience.md").exists()


def test_windows_line_ends_in_git(pair: Pair) -> None:
    (pair.path / ".gitattributes").write_text("* -text\n", encoding="utf-8")
    for name in ("ruff.toml", "README.md"):
        file = pair.path / name
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    commit_all(pair.path, "From Windows")
    check_refused(pair, "Windows line endings", "  README.md\n  ruff.toml\n", "--renormalize")


@pytest.mark.ci
def test_windows_line_ends_in_the_working_tree_do_no_harm(pair: Pair) -> None:
    (pair.path / ".gitattributes").unlink()
    commit_all(pair.path, "Leave it to git")
    git("config", "core.autocrlf", "true", cwd=pair.path)
    git("rm", "--quiet", "-r", "--cached", ".", cwd=pair.path)
    git("reset", "--quiet", "--hard", cwd=pair.path)
    assert b"\r\n" in (pair.path / "ruff.toml").read_bytes()
    code, said = update(pair.project, "--dry-run")
    assert code == DONE, said
    assert "ruff.toml" in said


@pytest.mark.ci
def test_a_file_that_git_ignores_is_in_the_way(pair: Pair) -> None:
    append(pair.path / ".gitignore", "/docs\n")
    commit_all(pair.path, "Ignore the docs")
    (pair.path / "docs").mkdir()
    (pair.path / "docs/audience.md").write_text("Secret.\n", encoding="utf-8")
    check_refused(pair, "docs/audience.md")


@pytest.mark.ci
def test_a_shallow_clone_of_the_project_can_be_updated(pair: Pair, tmp_path: Path) -> None:
    append(pair.path / "README.md", "More.\n")
    commit_all(pair.path, "More")
    shallow = tmp_path / "shallow"
    git("clone", "--quiet", "--depth=1", f"file://{pair.path}", shallow, cwd=tmp_path)
    code, said = update(Project(shallow, {}), "--dry-run")
    assert code == DONE, said


@pytest.fixture
def monorepo(pair: Pair, tmp_path: Path) -> Path:
    """A repository with a project in `services/our notes`; somebody works in another folder."""
    shutil.rmtree(pair.path / ".git")
    top = tmp_path / "monorepo"
    shutil.copytree(pair.path, top / "services" / "our notes")
    (top / "elsewhere.txt").write_text("committed\n", encoding="utf-8")
    commit_all(top, "Start")
    edit(top / "services" / "our notes" / "ruff.toml", r"\A#", "# Ours.")
    commit_all(top, "Edit")
    (top / "elsewhere.txt").write_text("not yet committed\n", encoding="utf-8")
    (top / "new.txt").touch()
    return top


def test_a_project_in_a_folder_of_a_larger_repository(monorepo: Path) -> None:
    top, path = monorepo, monorepo / "services" / "our notes"
    with unchanged(top):
        code, said = update(Project(path, {}))
        assert code == TAKES_A_PERSON, said
        assert "* ruff.toml:1: conflict" in said
        assert " M elsewhere.txt" in git("status", "--porcelain", cwd=top)
        assert "UU " in git("status", "--porcelain", cwd=top)
        [go_back] = re.findall(r"^To go back: +(.*)$", said, re.MULTILINE)
        Project(path, {}).check("sh", "-c", go_back)


@pytest.mark.ci
def test_what_keeps_an_update_takes_nothing_else(monorepo: Path) -> None:
    path = monorepo / "services" / "our notes"
    git("add", "elsewhere.txt", cwd=monorepo)
    beside = git("status", "--porcelain", cwd=monorepo)
    from_above = Project(monorepo, {}).run("uv", "run", f"{path}/scripts/update.py", timeout=500)
    [keep] = re.findall(r"^To keep it: +(.*)$", from_above.stdout, re.MULTILINE)
    (path / "secret.txt").touch()
    refused = Project(monorepo, {}).run("sh", "-c", keep)
    assert "ruff.toml:1: leftover conflict marker" in refused.stdout
    edit(path / "ruff.toml", r"^(<<<<<<<|=======|>>>>>>>)[^\n]*\n", "")

    Project(monorepo, {}).check("sh", "-c", keep)

    secret = '?? "services/our notes/secret.txt"\n'
    assert git("status", "--porcelain", cwd=monorepo) == beside + secret
    committed = git("show", "--format=", "--name-only", "HEAD", cwd=path).split("\n")
    assert "services/our notes/docs/audience.md" in committed
    assert not {"elsewhere.txt", "new.txt"} & set(committed)


# ---- The template ----


@pytest.mark.ci
def test_an_address_that_only_the_user_can_resolve(pair: Pair, tmp_path: Path) -> None:
    edit_answers(pair.path, _src_path="gh:ours/template")
    commit_all(pair.path, "Publish the template")
    users = tmp_path / "gitconfig"
    address = "https://github.com/ours/template"
    git("config", "--file", users, f"url.{pair.template}.insteadOf", address, cwd=tmp_path)
    code, said = update(pair.project, "--dry-run", GIT_CONFIG_GLOBAL=str(users))
    assert code == DONE, said
    assert "docs/audience.md" in said


def test_the_template_is_gone(pair: Pair) -> None:
    shutil.rmtree(pair.template)
    check_refused(pair, f"cannot be read from {str(pair.template)!r}", "_src_path")


def test_an_old_version_that_the_template_does_not_know(pair: Pair) -> None:
    edit_answers(pair.path, _commit="v0.0.7")
    commit_all(pair.path, "Edit")
    check_refused(pair, "'v0.0.7'", "does not have", "edited by hand")


def test_a_shallow_clone_of_the_template(pair: Pair) -> None:
    shallow = pair.template.with_name("shallow")
    url = f"file://{pair.template}"
    git("clone", "--quiet", "--depth=1", "--branch", FUTURE, url, shallow, cwd=pair.template)
    edit_answers(pair.path, _src_path=str(shallow))
    commit_all(pair.path, "Move the template")
    check_refused(pair, f"{PRESENT!r}", "shallow clone", "--unshallow")


def test_a_tag_that_was_moved(pair: Pair) -> None:
    moved_from = git("rev-parse", f"{PRESENT}^{{commit}}", cwd=pair.template).strip()
    git("tag", "--force", PRESENT, FUTURE, cwd=pair.template)
    check_refused(pair, f"the tag pointed to {moved_from}", "restore the tag")


def test_a_release_that_there_is_not(pair: Pair) -> None:
    check_refused(pair, "no release 'v7'", FUTURE, options=("--to", "v7"))


def test_a_release_that_is_older(pair: Pair) -> None:
    git("tag", "v1.0.0a1", f"{PRESENT}~1", cwd=pair.template)
    check_refused(pair, "is older than this project", options=("--to", "v1.0.0a1"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [("databse=sqlite", "has no question databse. It has"), ("ci=jenkins", "Invalid choice")],
)
def test_an_answer_that_the_template_does_not_take(pair: Pair, data: str, sentence: str) -> None:
    check_refused(pair, sentence, options=("--data", data))


def test_no_newer_release(pair: Pair) -> None:
    git("tag", "--delete", FUTURE, cwd=pair.template)
    with unchanged(pair.path):
        for options in ((), ("--check",)):
            code, said = update(pair.project, *options)
            assert code == DONE
            assert f"is at {PRESENT}" in said
            assert "no newer release" in said


def test_a_newer_release_is_told_of(pair: Pair) -> None:
    append(pair.path / "README.md", "Not committed.\n")  # only an update refuses this
    with unchanged(pair.path):
        code, said = update(pair.project, "--check")
    assert code == 1
    assert f"{FUTURE} is available" in said
    assert "- Every line that there is." in said
    assert "## Unreleased" not in said


def test_the_changelog_is_told_from_the_releases_in_between(pair: Pair) -> None:
    sections = {"Unreleased": "U", "1001.0.0": "C", "1000.0.0": "B", "999.0.0": "A"}
    changelog = "".join(f"## {name}\n\n{text}\n\n" for name, text in sections.items())
    (pair.template / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    commit_all(pair.template, "More")
    git("tag", "v1001.0.0", cwd=pair.template)
    git("tag", "v1002.0.0a1", cwd=pair.template)
    _, said = update(pair.project, "--check")
    told = [line.strip() for line in said.splitlines() if line.strip() in set("UABC")]
    assert told == ["C", "B"]


# ---- A release with a fault ----


def release(pair: Pair, name: str, pattern: str, replacement: str) -> None:
    edit(pair.template / name, pattern, replacement)
    commit_all(pair.template, "Fault")
    git("tag", "v1001.0.0", cwd=pair.template)


def check_told(pair: Pair, *sentences: str, options: tuple[str, ...] = ()) -> str:
    """Check that a rehearsal lists what needs attention, and changes nothing."""
    with unchanged(pair.path):
        code, said = update(pair.project, "--dry-run", *options)
    assert code == TAKES_A_PERSON, said
    for sentence in (*sentences, "That was a dry run: nothing was changed."):
        assert sentence in said, said
    return said


def test_what_an_update_cannot_decide_is_told(pair: Pair) -> None:
    edit_answers(pair.path, license="BSD-3-Clause")
    append(pair.path / "app/core/health.py", "# Ours.\n")
    append(pair.path / "pyproject.toml", "\n[tool.ours]\n")
    commit_all(pair.path, "Edit")
    edit(pair.template / "copier.yml", r"^    BSD-3-Clause[^\n]*\n", "")
    for name in ("health", "config"):
        (pair.template / f"template/app/core/{name}.py").unlink()
    edit(
        pair.template / "template/pyproject.toml.jinja",
        r"^\[tool\.uv\]",
        "[tool.ours]\n\n[tool.uv]",
    )
    release(pair, "template/.github/workflows/ci.yml.jinja", r"^permissions:", "permissions: [")
    said = check_told(
        pair,
        *("* .copier-answers.yml: license was 'BSD-3-Clause'", "--data license="),
        "* app/core/health.py: this release deletes the file",
        *("* pyproject.toml: can no longer be parsed: ", "ours"),
        "* .github/workflows/ci.yml: can no longer be parsed: ",
    )
    assert "* app/core/config.py" not in said


@pytest.mark.ci
def test_what_a_release_changes_in_a_file_that_was_moved(pair: Pair) -> None:
    git("mv", "tests/harness/guard.py", "tests/our_guard.py", cwd=pair.path)
    git("rm", "--quiet", ".pre-commit-config.yaml", "tests/patterns/backends.py", cwd=pair.path)
    commit_all(pair.path, "Move")
    append(pair.template / "template/.pre-commit-config.yaml", "# Newer.\n")
    git("rm", "--quiet", "template/tests/patterns/backends.py", cwd=pair.template)
    release(pair, "template/tests/harness/guard.py", r"\A", "# Newer.\n")
    with unchanged(pair.path):
        code, said = update(pair.project, "--dry-run")
    assert code == DONE, said
    [change] = re.findall(r"^- tests/harness/guard.py: .*?(?=^\S)", said, re.MULTILINE | re.DOTALL)
    assert re.search(r"\(\d insertions\(\+\)\)", change)
    assert "\n    +# Newer.\n" in change
    assert said.count("\n- ") == 1 + said.count("\n- Every line"), said


@pytest.mark.ci
def test_dependencies_that_cannot_be_locked(pair: Pair) -> None:
    pair.project.check("uv", "lock", "--quiet")
    commit_all(pair.path, "Lock")
    release(pair, "template/pyproject.toml.jinja", r'"fastapi-cli>=[^"]+"', '"fastapi-cli>=9999"')
    check_told(pair, "* uv.lock: out of date", "fastapi-cli>=9999")


# ---- An answer that changes the team's files ----

DELETE_EXAMPLE = ("--to", PRESENT, "--data", "example=false")
OWN_MIGRATION = 'revision, down_revision = "abc", "0001"\n'


@pytest.mark.ci
def test_an_edited_example_is_not_deleted(example_pair: Pair) -> None:
    path = example_pair.path
    append(path / "app/users/router.py", "\n# Ours.\n")
    (path / "app/items/feed.py").unlink()
    (path / "app/users/permissions.py").write_text("OURS = 1\n", encoding="utf-8")
    commit_all(path, "Edit")
    edited = "You have edited these files, which would be deleted:\n\n  app/users/router.py\n\n"
    check_refused(example_pair, edited, "git rm", options=DELETE_EXAMPLE)


@pytest.mark.ci
def test_what_is_left_of_the_example_is_told(example_pair: Pair) -> None:
    path = example_pair.path
    edit(path / "app/main.py", r'"feed": Feed\([^)]*\)', r'\g<0>, "ours": 1')
    (path / "README.md").write_text("# Ours\n", encoding="utf-8")
    (path / "migrations/versions/abc_ours.py").write_text(OWN_MIGRATION, encoding="utf-8")
    commit_all(path, "Edit")
    migration = "* migrations/versions/0001_users_and_items.py: kept, because you have migrations"
    said = check_told(example_pair, migration, options=DELETE_EXAMPLE)
    [number] = re.findall(r"^\* app/main.py:(\d+): conflict", said, re.MULTILINE)
    assert int(number) > 1
    assert said.count("\n* ") == 2, said
    assert "README.md" not in said
    assert not re.search(r"^ migrations/versions/0001", said, re.MULTILINE)


@pytest.mark.ci
def test_a_migration_of_the_example_that_is_gone_is_not_missed(example_pair: Pair) -> None:
    migrations = example_pair.path / "migrations/versions"
    [examples] = migrations.glob("0001_*.py")
    examples.rename(migrations / "abc_all_in_one.py")
    commit_all(example_pair.path, "Squash the migrations")
    code, said = update(example_pair.project, "--dry-run", *DELETE_EXAMPLE)
    assert code == DONE, said
    assert "0001" not in said


@pytest.mark.ci
def test_an_example_that_meets_files_of_the_team_is_told(releases: Path, tmp_path: Path) -> None:
    answers = {"example": False}
    project = render(releases, tmp_path / "project", answers, PRESENT)
    pair = paired(releases, Project(project, answers))  # a small project has no example to add
    router = pair.path / "app/users/router.py"
    router.parent.mkdir()
    router.write_text("OURS = 1\n", encoding="utf-8")
    (pair.path / "migrations/versions/abc_ours.py").write_text(OWN_MIGRATION, encoding="utf-8")
    commit_all(pair.path, "Users of our own")
    told = ("* app/users/router.py:1: conflict", "0001_users_and_items.py: not added, because you")
    check_told(pair, *told, options=("--to", PRESENT, "--data", "example=true"))


# ---- Interrupted ----


@pytest.mark.parametrize(
    "sign",
    [
        signal.SIGINT,
        *(pytest.param(each, marks=pytest.mark.ci) for each in (signal.SIGTERM, signal.SIGKILL)),
    ],
)
def test_an_interrupted_update_changes_nothing(pair: Pair, sign: signal.Signals) -> None:
    command = ["uv", "run", "scripts/update.py"]
    with unchanged(pair.path):
        with subprocess.Popen(
            command,
            cwd=pair.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("Trying the update"):
                    break
            os.killpg(process.pid, sign)
            rest = process.stdout.read()
        if sign != signal.SIGKILL:
            assert "Interrupted. Nothing was changed." in rest
            assert "Traceback" not in rest
        git("worktree", "prune", cwd=pair.path)
    assert update(pair.project, "--dry-run")[0] == DONE


# ---- In CI ----

# A fake `gh`: it records its arguments, and knows one pull request after that was created.
GH = """#!/bin/sh
echo "$*" >> "$RECORD"
case "$1 $2" in
"pr list") if [ -e "$RECORD.open" ]; then echo 1; else echo 0; fi ;;
"pr create") touch "$RECORD.open" ;;
esac
for last; do :; done
case "$last" in *.md) cp "$last" "$RECORD.body" ;; esac
"""


class Ci(NamedTuple):
    """A repository of the project, and a runner that clones it."""

    origin: Path
    directory: Path

    def run(self, script: str, name: str, **env: str) -> str:
        """Run a job's script in a new clone; return its output."""
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        git("clone", "--quiet", self.origin, path, cwd=self.directory)
        path_variable = f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        unset = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL"), "")
        job = Project(path, {})
        shell = ("env", *(f"--unset={name}" for name in unset), "bash", "-e", "-c", script)
        return job.check(*shell, PATH=path_variable, **env)

    def branch(self, what: str = "%s") -> str:
        """Return the last commit of the proposed branch, in the format `what`."""
        return git("log", "-1", f"--format={what}", "template-update", cwd=self.origin).strip()

    def commit_by_hand(self) -> None:
        """Let somebody commit to the proposed branch."""
        path = self.directory / "by hand"
        git("clone", "--quiet", "--branch=template-update", self.origin, path, cwd=self.directory)
        append(path / "ruff.toml", "# By hand.\n")
        commit_all(path, "By hand")
        git("push", "--quiet", cwd=path)


@pytest.fixture
def ci(pair: Pair, tmp_path: Path) -> Ci:
    """The origin of a project whose update has a conflict, so that it runs no checks."""
    edit(pair.path / "ruff.toml", r"\A#", "# Ours.")
    commit_all(pair.path, "Edit")
    git("clone", "--quiet", "--bare", pair.path, tmp_path / "origin.git", cwd=tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH, encoding="utf-8")
    (tmp_path / "bin/gh").chmod(0o755)
    return Ci(tmp_path / "origin.git", tmp_path)


def steps(workflow: Path) -> dict[str, str]:
    """Return the commands of a workflow's steps, by name."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return {step["name"]: step["run"] for job in jobs for step in job["steps"] if "run" in step}


TITLE = f"Update the template to {FUTURE}, with work to do"


def test_github_gets_one_pull_request_with_what_the_rehearsal_found(ci: Ci, tmp_path: Path) -> None:
    scripts = steps(ROOT / "template/.github/workflows/template.yml")
    (tmp_path / "temp").mkdir()
    output, record = tmp_path / "output", tmp_path / "record"
    env = {
        "RUNNER_TEMP": str(tmp_path / "temp"),
        "GITHUB_OUTPUT": str(output),
        "GITHUB_WORKSPACE": str(tmp_path / "propose"),
        "GITHUB_RUN_ID": "7",
        "BRANCH": "template-update",
        "TITLE": TITLE,
        "RECORD": str(record),
    }
    ci.run(scripts["Update"], "update", **env)
    assert output.read_text(encoding="utf-8") == f"title={TITLE}\n"
    for own_token, actions in (("false", ["create", "edit"]), ("true", ["edit"])):
        for action in actions:
            ci.run(scripts["Propose"], "propose", MAY_CHANGE_WORKFLOWS=own_token, **env)
            said = record.read_text(encoding="utf-8").splitlines()
            assert said[-1].startswith(f"pr {action} ")
            assert f"--title {TITLE}" in said[-1]
            assert ci.branch() == TITLE
            body = (tmp_path / "record.body").read_text(encoding="utf-8")
            assert "* ruff.toml:1: conflict" in body
            changed = git("diff", "--name-only", "main", "template-update", cwd=ci.origin).split()
            assert "docs/audience.md" in changed
            workflows = [name for name in changed if name.startswith(".github/workflows")]
            assert bool(workflows) is (own_token == "true")
            assert ("git apply --index --include" in body) is (own_token == "false")
            assert git("log", "--oneline", "main..template-update", cwd=ci.origin).count("\n") == 1
    ci.commit_by_hand()
    ci.run(scripts["Propose"], "propose", MAY_CHANGE_WORKFLOWS="true", **env)
    assert ci.branch() == "By hand"


@pytest.mark.ci
def test_gitlab_gets_a_merge_request_with_what_the_rehearsal_found(
    ci: Ci, tmp_path: Path, rendered: Callable[..., Path]
) -> None:
    jobs = yaml.safe_load((rendered(ci="gitlab") / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    script = jobs["template"]["script"][1]
    hook = ci.origin / "hooks/pre-receive"
    hook.write_text(f"#!/bin/sh\nenv > {tmp_path / 'pushed'}\n", encoding="utf-8")
    hook.chmod(0o755)
    git("config", "receive.advertisePushOptions", "true", cwd=ci.origin)
    users, address = tmp_path / "gitconfig", "https://template:secret@gitlab.example:443/a/b.git"
    git("config", "--file", users, f"url.{ci.origin}.insteadOf", address, cwd=tmp_path)
    env = {
        "GIT_CONFIG_GLOBAL": str(users),
        "BRANCH": "template-update",
        "CI_SERVER_PROTOCOL": "https",
        "CI_SERVER_HOST": "gitlab.example",
        "CI_SERVER_PORT": "443",
        "CI_PROJECT_PATH": "a/b",
    }
    for _ in range(2):
        ci.run(script, "job", TEMPLATE_TOKEN="secret", **env)
        pushed = (tmp_path / "pushed").read_text(encoding="utf-8")
        assert "=merge_request.create\n" in pushed
        assert f"=merge_request.title={TITLE}\n" in pushed
        assert ci.branch() == TITLE
        assert "* ruff.toml:1: conflict" in ci.branch("%b")
        assert git("log", "--oneline", "main..template-update", cwd=ci.origin).count("\n") == 1
    ci.commit_by_hand()
    assert "stays as it is" in ci.run(script, "job", TEMPLATE_TOKEN="secret", **env)
    assert ci.branch() == "By hand"


# ---- The checks ----

OLD = "echo 'app/old.py:3:1: F401 old'"
NEW = (
    "if grep -q 'Changed at the top' ruff.toml; then echo 'FAILED tests/test_a.py::test_it - 1'; fi"
)


@pytest.mark.ci
def test_checks_that_failed_before_are_not_put_down_to_the_update(pair: Pair) -> None:
    replace_checks(pair.path, f"{OLD}; exit 1")
    code, said = update(pair.project)
    assert code == DONE, said
    assert "the checks fail as they did before" in said
    assert "checks pass" not in said


@pytest.mark.ci
def test_what_checks_say_since_the_update_is_told(pair: Pair) -> None:
    replace_checks(pair.path, f"{OLD}; {NEW}; exit 1")
    code, said = update(pair.project)
    assert code == TAKES_A_PERSON, said
    assert "These failures are new:\n\n  FAILED tests/test_a.py::test_it\n\n" in said


# ---- Halfway ----


def stick(pair: Pair, command: str) -> None:
    """Make git fail to write tests/conftest.py, after other files, while `command` fails."""
    attributes = pair.path / ".git/info/attributes"
    attributes.write_text("/tests/conftest.py filter=stuck\n", encoding="utf-8")
    git("config", "filter.stuck.smudge", f"{command} && cat", cwd=pair.path)
    git("config", "filter.stuck.clean", "cat", cwd=pair.path)
    git("config", "filter.stuck.required", "true", cwd=pair.path)


def test_an_update_that_cannot_be_put_in_place_is_taken_back(pair: Pair, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    stick(pair, f"{{ test -e {seen} || ! touch {seen}; }}")
    check_refused(pair, "could not be applied", "tests/conftest.py")
    assert seen.exists()


@pytest.mark.ci
def test_an_update_that_stops_half_way_says_so(pair: Pair, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    stick(pair, f"test -e {mended}")
    code, said = update(pair.project)
    assert code == REFUSED
    assert "Nothing was changed" not in said
    for sentence in ("stopped halfway", "stuck failed", " D tests/conftest.py"):
        assert sentence in said
    mended.touch()
    [go_back] = re.findall(r"Then go back \((.*?);", said)
    pair.project.check("sh", "-c", go_back)
    assert git("status", "--porcelain", cwd=pair.path) == ""
    assert update(pair.project, "--dry-run")[0] == DONE


@pytest.mark.ci
def test_an_update_goes_on_when_nobody_reads_what_it_says(pair: Pair) -> None:
    command = "{ uv run scripts/update.py --to " + FUTURE + "; echo $? > .git/code; } | head -1"
    done = pair.project.run("sh", "-c", command, timeout=500)
    assert (pair.path / ".git/code").read_text(encoding="utf-8") in {"0\n", "1\n"}
    assert "To keep it:" in done.stdout
    assert "Nothing was changed" not in done.stdout
    assert (pair.path / "docs/audience.md").exists()
