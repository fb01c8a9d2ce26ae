"""Releases: how to make one, what it must not change, and that each is still available."""

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from tests.rendering import ROOT, commit_all, copy_working_tree, git, run
from tests.updating import RELEASES, append, edit

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def copier_yml(release: str | None = None) -> dict[str, dict[str, object]]:
    """Return copier.yml of a release, or as it is now."""
    text = git("show", f"{RELEASES[release]}:copier.yml", cwd=ROOT) if release else None
    read: dict[str, dict[str, object]] = yaml.safe_load(
        text or (ROOT / "copier.yml").read_text(encoding="utf-8")
    )
    return read


def questions(read: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name: question for name, question in read.items() if not name.startswith("_")}


# ---- What is recorded ----


def test_the_record_agrees_with_the_changelog_and_the_version() -> None:
    told = re.findall(r"^## (\d\S*)", CHANGELOG, re.MULTILINE)
    assert [f"v{version}" for version in reversed(told)] == list(RELEASES)
    assert sorted(told, key=Version, reverse=True) == told
    assert told[:1] in ([], [VERSION])


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_in_the_history_and_states_its_version(release: str) -> None:
    git("merge-base", "--is-ancestor", RELEASES[release], "HEAD", cwd=ROOT)
    pyproject = git("show", f"{RELEASES[release]}:pyproject.toml", cwd=ROOT)
    assert f"v{tomllib.loads(pyproject)['project']['version']}" == release
    changelog = git("show", f"{RELEASES[release]}:CHANGELOG.md", cwd=ROOT)
    assert f"## {release.removeprefix('v')} (" in changelog


# ---- What a release may not change: docs/updates.md ----


def broken_promises(
    old: dict[str, dict[str, object]], new: dict[str, dict[str, object]]
) -> list[str]:
    """Name the changes that would affect projects whose owners did not ask for them."""
    broken = [f"{key} makes Copier ask for trust" for key in new if key in NEEDS_TRUST]
    before, now = questions(old), questions(new)
    broken += [f"{name} has no default" for name, it in now.items() if "default" not in it]
    broken += [f"{name} is gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        if before[name]["type"] != now[name]["type"]:
            broken.append(f"{name} is of another type")
        broken += [
            f"{name} no longer takes {choice}"
            for choice in offered(before[name])
            if choice not in offered(now[name])
        ]
    excluded = " ".join(map(str, new["_exclude"])).split()
    broken += [
        f"{seam} is no seam now, and not in _exclude"
        for seam in old["_skip_if_exists"]
        if seam not in new["_skip_if_exists"] and seam not in excluded
    ]
    return broken


NEEDS_TRUST = {"_tasks", "_migrations", "_jinja_extensions", "_external_data"}


def offered(question: dict[str, object]) -> list[object]:
    choices: Any = question.get("choices", [])
    return list(choices.values() if isinstance(choices, dict) else choices)


@pytest.mark.parametrize("release", [*RELEASES, None])
def test_what_was_promised_to_projects_is_kept(release: str | None) -> None:
    assert broken_promises(copier_yml(release), copier_yml()) == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "broken"),
    [
        (r"^project_slug:", "slug:", "project_slug is gone"),
        (r"^  default: sqlite\n", "", "database has no default"),
        (r"^    GitLab CI: gitlab\n", "", "ci no longer takes gitlab"),
        (r"^docker:\n  type: bool", "docker:\n  type: str", "docker is of another type"),
        (r"^  - /app/models.py\n", "", "/app/models.py is no seam now, and not in _exclude"),
        (r"\Z", "_tasks: [uv lock]\n", "_tasks makes Copier ask for trust"),
    ],
)
def test_a_broken_promise_is_noticed(
    tmp_path: Path, pattern: str, replacement: str, broken: str
) -> None:
    file = tmp_path / "copier.yml"
    shutil.copy(ROOT / "copier.yml", file)
    edit(file, pattern, replacement)
    new = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert broken in broken_promises(copier_yml(), new)


# ---- How a release is made ----


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The repository, with tests that pass at once."""
    path = tmp_path / "repository"
    git("init", "--quiet", "--initial-branch=main", path, cwd=ROOT)
    copy_working_tree(path)
    write_command(path / ".ci/run", "echo tests pass")
    write_command(tmp_path / "bin/uv", "echo long tests pass")
    edit(path / "CHANGELOG.md", r"^## Unreleased\n", "## Unreleased\n\n- A fault less.\n")
    commit_all(path, "Work")
    return path


def write_command(file: Path, script: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


def make(repository: Path, version: str) -> tuple[int, str]:
    """Run the script; return its exit code and output."""
    path = f"{repository.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = (sys.executable, "scripts/release.py", version)
    done = run(*command, cwd=repository, env={"PATH": path})
    return done.returncode, done.stdout


def test_a_release_is_made_step_by_step(repository: Path) -> None:
    before = git("rev-parse", "HEAD", cwd=repository)
    code, said = make(repository, "7.0.0")
    assert code == 0, said
    assert said.count("\n* ") == 5
    assert said.index("\ntests pass\n") < said.index("\nlong tests pass\n")
    assert git("status", "--porcelain", cwd=repository) == ""
    tagged = git("rev-parse", "v7.0.0^{commit}", cwd=repository)
    assert git("rev-parse", "HEAD~1", cwd=repository) == tagged
    read = tomllib.loads((repository / "releases.toml").read_text(encoding="utf-8"))
    assert read == {**RELEASES, "v7.0.0": tagged.strip()}
    released = git("show", "v7.0.0:CHANGELOG.md", cwd=repository)
    assert re.search(r"^## Unreleased\n\n## 7\.0\.0 \(\d{4}-\d\d-\d\d\)\n\n- A", released, re.M)
    assert '\nversion = "7.0.0"\n' in git("show", "v7.0.0:pyproject.toml", cwd=repository)

    [take_back] = re.findall(r"before it is published: +(.*)$", said, re.MULTILINE)
    assert run("sh", "-c", take_back, cwd=repository).returncode == 0
    assert git("rev-parse", "HEAD", cwd=repository) == before
    assert "v7.0.0" not in git("tag", cwd=repository)


def not_committed(repository: Path) -> None:
    append(repository / "README.md", "More.\n")


def on_a_branch(repository: Path) -> None:
    git("checkout", "--quiet", "-b", "feature", cwd=repository)


def released_already(repository: Path) -> None:
    append(repository / "releases.toml", '"v7.0.0" = "0"\n')
    commit_all(repository, "Record")


def tagged_already(repository: Path) -> None:
    git("tag", "v7.0.0", cwd=repository)


def no_news(repository: Path) -> None:
    edit(repository / "CHANGELOG.md", r"^## Unreleased\n.*?(?=^## |\Z)", "## Unreleased\n\n")
    commit_all(repository, "Forget")


def failing_tests(repository: Path) -> None:
    write_command(repository / ".ci/run", "echo tests fail; exit 1")
    commit_all(repository, "Break")


@pytest.mark.parametrize(
    ("hindrance", "sentence"),
    [
        (not_committed, "Commit or stash this first:\nM README.md"),
        (on_a_branch, "Releases are made on main"),
        (released_already, "7.0.0 is out; the next release must be newer."),
        (tagged_already, "The tag v7.0.0 already exists"),
        (no_news, "has nothing under `## Unreleased`"),
        (failing_tests, "tests fail\n\nThey do not"),
    ],
)
def test_a_release_is_not_made(
    repository: Path, hindrance: Callable[[Path], None], sentence: str
) -> None:
    hindrance(repository)
    before = [git(*what, cwd=repository) for what in (["log"], ["tag"], ["status", "--short"])]
    code, said = make(repository, "7.0.0")
    assert code == 1
    assert sentence in said
    assert "There is no release 7.0.0." in said
    after = [git(*what, cwd=repository) for what in (["log"], ["tag"], ["status", "--short"])]
    assert after == before


def test_a_version_has_to_be_one(repository: Path) -> None:
    code, said = make(repository, "seven")
    assert code == 2
    assert "'seven' is not a version like 0.2.0" in said
