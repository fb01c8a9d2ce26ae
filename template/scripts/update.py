# /// script
# requires-python = ">=3.11"
# dependencies = ["copier>=9.19", "packaging>=26.3", "pyyaml>=6.0.3"]
# ///
"""Update this project to a release of the template, and keep your edits.

The update runs in a separate repository first. If anything goes wrong, the project is unchanged.
The exit code is 0 if everything is done or there is nothing to do, 1 if something needs your
attention (with --check: if there is a newer release), 2 if the update is refused.
"""

import argparse
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from packaging.version import InvalidVersion, Version

PROJECT = Path(__file__).resolve().parents[1]
ANSWERS_FILE = ".copier-answers.yml"
MIGRATIONS = Path("migrations/versions")
PROSE = {"", ".md"}  # LICENSE, README.md
CONFLICT = {b"<<<<<<< before updating", b"<<<<<<< HEAD"}
TAB = "\t"
UV = os.environ.get("UV", "uv")  # the one that runs this script may not be on the path
GIT = "git" if Path.cwd() == PROJECT else f"git -C {shlex.quote(str(PROJECT))}"
RESTORE = ("restore", "--source=HEAD", "--staged", "--worktree")
GO_BACK = f"{GIT} {' '.join(RESTORE)}"
UNDER_WAY = {
    "MERGE_HEAD": "merge",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "BISECT_LOG": "bisect",
}
SHORTCUTS = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/", "git+": ""}


class RefusedError(Exception):
    """The update is refused, with the reason and a remedy. Nothing was changed."""


class HalfDoneError(Exception):
    """Only part of the update was applied, with the reason and how to go back."""


class CommandError(Exception):
    """A command failed, with its output."""


def run(
    *command: str | Path,
    cwd: Path = PROJECT,
    feed: str = "",
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command without a terminal and return its output. Raises CommandError."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            input=feed,
            env=env or environment(),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    except FileNotFoundError as error:
        raise RefusedError(f"An update needs {command[0]}, which is not installed.") from error
    if done.returncode != 0:
        raise CommandError((done.stderr or done.stdout).strip() or f"{command[0]} failed")
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment for other programs, without the variables of another repository."""
    foreign = {"VIRTUAL_ENV", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**inherited, "LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0"}


def git(*arguments: str | Path, cwd: Path = PROJECT, feed: str = "") -> str:
    """Run git and return its output. Raises CommandError."""
    return run("git", *arguments, cwd=cwd, feed=feed)


def names(said: str) -> list[str]:
    """Split the output of git with -z."""
    return [name for name in said.split("\0") if name]


# ---- Before: can this project be updated? ----


def refuse_unfit_project() -> None:
    """Raise RefusedError unless everything is committed and no merge or rebase is in progress."""
    try:
        top = Path(git("rev-parse", "--show-toplevel").strip())
        git("rev-parse", "--verify", "HEAD")
    except CommandError as error:
        raise RefusedError(
            "The project is not in git, or has no commit that the update could be merged with. "
            'First run: git init && git add --all && git commit -m "Start"'
        ) from error
    for name, action in UNDER_WAY.items():
        if (top / git("rev-parse", "--git-path", name, cwd=top).strip()).exists():
            raise RefusedError(
                f"A {action} is in progress. Finish or abort it (`git status` says how), then "
                "update."
            )
    if changed := git("status", "--porcelain", "--", ".").rstrip():
        raise RefusedError(
            f"There are uncommitted changes:\n\n{changed}\n\nTo keep them apart from the update, "
            "commit or stash them (git stash --include-untracked), then update. If they are left "
            f"over from an update that you do not want: {GO_BACK} ."
        )


def read_answers(directory: Path) -> dict[str, Any]:
    """Return the answers of the project in `directory`, with the template and the release."""
    try:
        answers = yaml.safe_load((directory / ANSWERS_FILE).read_text(encoding="utf-8"))
        answers["_src_path"], answers["_commit"]
    except FileNotFoundError as error:
        raise RefusedError(
            f"{ANSWERS_FILE} is missing, which names the template and release of this project. "
            f"If it was deleted, `git log -- {ANSWERS_FILE}` finds it. To create it again, name "
            "the release that the project is at:\n\n    uvx copier copy --vcs-ref RELEASE "
            f"--exclude '*' --exclude '!{ANSWERS_FILE}' ADDRESS_OF_THE_TEMPLATE ."
        ) from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{ANSWERS_FILE} does not name the template and the release (_src_path and _commit), "
            f"or is not valid YAML. `git log -p -- {ANSWERS_FILE}` shows its history. A project "
            "that was rendered from a folder without git has no release, and cannot be updated."
        ) from error
    return dict(answers)


# ---- The template and its releases ----


@dataclass(frozen=True)
class Template:
    """A clone of the template."""

    source: str
    address: str
    clone: Path

    def releases(self) -> dict[Version, str]:
        """Return the releases and their tags, oldest first; no pre-releases."""
        found = {}
        for tag in git("tag", cwd=self.clone).split():
            version = parsed(tag)
            if version and not version.is_prerelease:
                found[version] = tag
        return dict(sorted(found.items()))

    def commit(self, name: str) -> str | None:
        """Return the commit that `name` points to, or None if it does not exist."""
        try:
            return git("rev-parse", "--verify", f"{name}^{{commit}}", cwd=self.clone).strip()
        except CommandError:
            return None

    def has(self, older: str, newer: str) -> bool:
        """Return whether the commit `newer` comes after `older`, or is the same."""
        try:
            git("merge-base", "--is-ancestor", older, newer, cwd=self.clone)
        except CommandError:
            return False
        return True

    def changed_files(self, older: str, newer: str) -> set[str]:
        """Return the names of project files that can differ between two releases."""
        said = git("diff", "--name-only", "-z", older, newer, "--", "template", cwd=self.clone)
        return {name.removeprefix("template/").removesuffix(".jinja") for name in names(said)}

    def changes(self, older: str, newer: str) -> str:
        """Return the changelog of `newer` for the releases after `older`."""
        try:
            changelog = git("show", f"{newer}:CHANGELOG.md", cwd=self.clone)
        except CommandError:
            return ""
        since = parsed(re.sub(r"-\d+-g[0-9a-f]+$", "", older))
        until = parsed(newer)
        told = []
        for section in re.split(r"^(?=## )", changelog, flags=re.MULTILINE)[1:]:
            version = parsed(section.split()[1].strip("[]"))
            if version and not (since and version <= since) and not (until and version > until):
                told.append(section.strip())
        return "\n\n".join(told)


def parsed(tag: str) -> Version | None:
    """Return the version in the name of a tag, or None if it has none."""
    try:
        return Version(tag)
    except InvalidVersion:
        return None


def fetch_template(source: str, directory: Path) -> Template:
    """Clone the template. Raises RefusedError if it cannot be reached."""
    address = source
    for shortcut, meaning in SHORTCUTS.items():
        if source.startswith(shortcut):
            address = meaning + source.removeprefix(shortcut).lstrip("/")
    address = str(Path(address).expanduser()) if address.startswith("~") else address
    try:
        git("clone", "--quiet", "--bare", "--", address, directory)
    except CommandError as error:
        raise RefusedError(
            f"The template cannot be read from {source!r}: {error}\nThe address is _src_path in "
            f"{ANSWERS_FILE}. If the template has moved, correct it there, commit, and try again."
        ) from error
    return Template(source, address, directory)


def find_base(template: Template, answers: Mapping[str, Any]) -> str:
    """Return the template commit that the project is at. Raises RefusedError if it is unclear."""
    current, made_from = str(answers["_commit"]), answers.get("_commit_hash")
    base = template.commit(current)
    if base is None:
        shallow = git("rev-parse", "--is-shallow-repository", cwd=template.clone).strip() == "true"
        raise RefusedError(
            f"This project was rendered from {current!r} of the template (_commit in "
            f"{ANSWERS_FILE}), which {template.source} does not have. "
            + (
                "That is a shallow clone. Fetch the rest: git fetch --unshallow --tags"
                if shallow
                else "Was the tag deleted, or the file edited by hand? "
                f"`git log -p -- {ANSWERS_FILE}` shows its history."
            )
        )
    if made_from not in {None, base}:
        raise RefusedError(
            f"{current!r} of the template has changed since this project was rendered: the tag "
            f"pointed to {made_from}, and now points to {base}. An update would find conflicts in "
            "files that you never edited. Ask the publishers of the template to restore the tag."
        )
    return base


def choose_release(template: Template, base: str, wanted: str | None) -> str | None:
    """Return the release to update to: `wanted`, else the newest; None if none is newer."""
    releases = template.releases()
    if wanted is None:
        newest = list(releases.values())[-1:]
        return None if not newest or template.has(newest[0], base) else newest[0]
    target = template.commit(wanted)
    if target is None:
        known = ", ".join(releases.values()) or "none"
        raise RefusedError(f"The template has no release {wanted!r}. Its releases: {known}")
    if target != base and template.has(target, base):
        raise RefusedError(f"{wanted} is older than this project, which cannot be downgraded.")
    return None if target == base else wanted


# ---- The rehearsal ----


def settings(template: Template, directory: Path) -> dict[str, str]:
    """Return an environment in which git ignores all user settings and uses the cloned template.

    Copier runs git, and user settings change how git merges, writes and lists files.
    """
    file = directory / "gitconfig"
    for name, value in {
        "core.eol": "lf",  # as stored, even on Windows
        "core.attributesFile": os.devnull,
        "core.excludesFile": os.devnull,
        "safe.directory": "*",  # in CI, another user may own the project
        "user.name": "Update",
        "user.email": "update@localhost",
        # Without .git, which Copier adds to some addresses; git finds the clone either way.
        f"url.{template.clone.with_suffix('').as_posix()}.insteadOf": (
            template.address.removesuffix(".git")
        ),
    }.items():
        git("config", "--file", file, name, value)
    inherited = {name: text for name, text in environment().items() if not name.startswith("GIT_")}
    return {
        **inherited,
        "GIT_CONFIG_GLOBAL": str(file),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }


@dataclass
class Rehearsal:
    """A copy of the project in a separate repository: first as committed, then updated."""

    scratch: Path
    prefix: str
    before: str
    env: Mapping[str, str]
    tree: str = ""
    unmerged: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """The directory of the project, which can be a folder in a larger repository."""
        return self.scratch / "rehearsal" / self.prefix

    def git(self, *arguments: str | Path, feed: str = "") -> str:
        """Run git in the rehearsal."""
        return run("git", *arguments, cwd=self.directory, feed=feed, env=self.env)

    def copier(self, *arguments: str | Path) -> None:
        """Run Copier. Raises RefusedError if it fails."""
        command = (sys.executable, "-m", "copier", *arguments, "--defaults", "--quiet")
        try:
            run(*command, env=self.env)
        except CommandError as error:
            last_words = str(error).splitlines()[-1]  # a traceback may precede them
            raise RefusedError(f"Copier failed: {last_words}") from error

    def render(self, answers: Mapping[str, Any], name: str, *asked: str) -> Path:
        """Render the project with these answers, without anybody's edits; return its directory."""
        file = self.scratch / f"{name}.yml"
        given = {name: value for name, value in answers.items() if not name.startswith("_")}
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        options = ("--vcs-ref", str(answers["_commit"]), "--data-file", str(file), *asked)
        directory = self.scratch / name / self.prefix
        self.copier("copy", *options, str(answers["_src_path"]), directory)
        return directory

    def commit(self, directory: Path, files: Iterable[str], *options: str) -> str:
        """Commit rendered files; return the commit."""
        env = {
            **self.env,
            "GIT_DIR": str(self.scratch / "rehearsal" / ".git"),
            "GIT_WORK_TREE": str(self.scratch / directory.relative_to(self.scratch).parts[0]),
            "GIT_INDEX_FILE": str(self.scratch / "index"),
        }
        run("git", "read-tree", "--empty", cwd=directory, env=env)
        feed = "\0".join(name for name in files if (directory / name).exists())
        if feed:
            add = ("git", "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
            run(*add, cwd=directory, env=env, feed=feed)
        tree = run("git", "write-tree", cwd=directory, env=env).strip()
        return self.git("commit-tree", tree, *options, "-m", "after updating").strip()

    def take_down(self) -> None:
        """Write the current files as a git tree."""
        self.unmerged += self.git("ls-files", "--unmerged", "--full-name", "-z")
        self.git("add", "--all", "--force", ".")
        self.tree = self.git("write-tree").strip()

    def changed(self, kinds: str) -> list[str]:
        """Return the names of files that were added (A), modified (M) or deleted (D)."""
        said = self.git(
            *("diff", "--name-only", "--no-renames", "--relative", "-z"),
            *(f"--diff-filter={kinds}", self.before, self.tree),
        )
        return names(said)


def objects() -> Path:
    """Return the object directory of the project's repository."""
    return PROJECT / git("rev-parse", "--git-path", "objects").strip()


def set_up(scratch: Path, env: Mapping[str, str]) -> Rehearsal:
    """Check the committed project out into a new repository that borrows its objects."""
    before, prefix, kind = git("rev-parse", "HEAD", "--show-prefix", "--show-object-format").split(
        "\n"
    )[:3]
    top = scratch / "rehearsal"
    run("git", "init", "--quiet", f"--object-format={kind}", top, env=env)
    alternates = top / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"{objects().resolve()}\n", encoding="utf-8")
    run("git", "checkout", "--quiet", "--detach", before, cwd=top, env=env)
    return Rehearsal(scratch, prefix, before, env)


def rehearse(rehearsal: Rehearsal, release: str, data: list[str], template: Template) -> None:
    """Update the project in the separate repository, and note what needs attention."""
    before = read_answers(rehearsal.directory)
    # This takes a while, and is rarely needed.
    as_made = functools.cache(lambda: rehearsal.render(before, "as_made"))
    refuse_windows_line_ends(rehearsal, as_made)
    asked = [option for answer in data for option in ("--data", answer)]
    rehearsal.copier("update", "--vcs-ref", release, *asked, rehearsal.directory)
    rehearsal.take_down()
    asked_for = {answer.partition("=")[0] for answer in data}
    rehearsal.problems += [
        *changed_answers(before, read_answers(rehearsal.directory), asked_for),
        *lost_edits(rehearsal, as_made),
    ]
    rehearsal.notes += missed_changes(rehearsal, before, release, template)
    if data:
        follow_answers(rehearsal, asked, template)
    rehearsal.problems += left_to_resolve(rehearsal)
    if not rehearsal.problems:
        rehearsal.problems += relock(rehearsal)


def refuse_windows_line_ends(rehearsal: Rehearsal, as_made: Callable[[], Path]) -> None:
    """Raise RefusedError if the template's files have them: every line would conflict."""
    found = []
    for line in names(rehearsal.git("ls-files", "--eol", "-z")):
        ends, name = line.split("\t", 1)
        if re.search(r"\bw/(crlf|mixed)\b", ends) and (as_made() / name).exists():
            found.append(name)
    if found:
        raise RefusedError(
            "These files have Windows line endings, in git or by .gitattributes, so every line "
            "differs from the template:\n\n  " + "\n  ".join(found) + "\n\nWith "
            "`* text=auto eol=lf` in .gitattributes, and no other rule for them: "
            'git add --renormalize . && git commit -m "Store line feeds"'
        )


def changed_answers(
    before: Mapping[str, Any], after: Mapping[str, Any], asked_for: set[str]
) -> Iterator[str]:
    """Yield a problem for each answer that has changed although nobody asked for it."""
    questions = sorted(name for name in after if not name.startswith("_"))
    if unknown := asked_for.difference(questions):
        raise RefusedError(
            f"The template has no question {', '.join(sorted(unknown))}. "
            f"It has {', '.join(questions)}."
        )
    for name in questions:
        if name not in asked_for and name in before and before[name] != after[name]:
            yield (
                f"{ANSWERS_FILE}: {name} was {before[name]!r}, which this release does not accept. "
                f"It is now {after[name]!r}. Go back, and choose: --data {name}=..."
            )


def lost_edits(rehearsal: Rehearsal, as_made: Callable[[], Path]) -> Iterator[str]:
    """Yield a problem for each edited file that the release deletes."""
    for name in rehearsal.changed("D"):
        edited = rehearsal.git("rev-parse", f"{rehearsal.before}:./{name}")
        made = as_made() / name
        if not made.exists() or rehearsal.git("hash-object", "--no-filters", made) != edited:
            yield (
                f"{name}: this release deletes the file, which you had edited. "
                f"To restore it: {GO_BACK} -- {shlex.quote(name)}"
            )


# ---- What an answer changes in the files that are yours ----


@dataclass
class Change:
    """The effect of changed answers on files that Copier does not update: seams and starters."""

    made: Path
    wanted: Path
    files: list[str]

    def edits(self, rehearsal: Rehearsal) -> int:
        """Count the lines that the project does not have."""
        return sum(
            len(set((read(self.made / name) or b"").splitlines()) - set(file.splitlines()))
            for name in self.files
            if (file := read(rehearsal.directory / name)) is not None
        )


def follow_answers(rehearsal: Rehearsal, asked: list[str], template: Template) -> None:
    """Merge the effect of changed answers into seams and starters."""
    nearest, fewest = None, 0
    for change in possible_changes(rehearsal, asked, template):
        edits = change.edits(rehearsal)
        if nearest is None or edits < fewest:
            nearest, fewest = change, edits
        if fewest == 0:
            break
    if nearest is None:
        return
    leave_migrations_in_use(rehearsal, nearest)
    refuse_edited_starters(rehearsal, nearest)
    for prose in (False, True):
        # Rewritten text is not merged: a conflict in it would help nobody.
        options = ("--strategy-option=ours",) if prose else ()
        files = [name for name in nearest.files if (Path(name).suffix in PROSE) == prose]
        older = rehearsal.commit(nearest.made, files)
        newer = rehearsal.commit(nearest.wanted, files, "-p", older)
        try:
            rehearsal.git("cherry-pick", "--no-commit", *options, newer)
        except CommandError:
            if not rehearsal.git("ls-files", "--unmerged"):
                raise
        rehearsal.take_down()


def possible_changes(
    rehearsal: Rehearsal, asked: list[str], template: Template
) -> Iterator[Change]:
    """Yield what the answers change at each release that the project has been at, newest first.

    Updates do not change seams and starters, so these may come from any of these releases.
    """
    source = read_answers(rehearsal.directory)["_src_path"]
    touched = set(rehearsal.changed("AMD"))
    for number, answers in enumerate(past_answers(template)):
        here = {**answers, "_src_path": source}
        made = rehearsal.render(here, f"made-{number}")
        wanted = rehearsal.render(here, f"wanted-{number}", *asked)
        found = {
            file.relative_to(directory).as_posix()
            for directory in (made, wanted)
            for file in directory.rglob("*")
            if file.is_file()
        }
        differ = sorted(name for name in found if read(made / name) != read(wanted / name))
        yield Change(made, wanted, [name for name in differ if name not in touched])


def past_answers(template: Template) -> Iterator[dict[str, Any]]:
    """Yield the answers that the project has had, newest first."""
    seen = []
    for commit in git("log", "--format=%H", "--", ANSWERS_FILE).split():
        try:
            answers = yaml.safe_load(git("show", f"{commit}:./{ANSWERS_FILE}"))
            known = template.commit(str(answers["_commit"]))
        except (CommandError, yaml.YAMLError, KeyError, TypeError):
            continue  # the file was missing or broken in this commit
        if known and answers not in seen:
            seen.append(answers)
            yield answers


def leave_migrations_in_use(rehearsal: Rehearsal, change: Change) -> None:
    """Leave the migrations as they are if the team has its own, and note a problem."""
    examples = {name for name in change.files if Path(name).parent == MIGRATIONS}
    there = (rehearsal.directory / MIGRATIONS).glob("*.py")
    own = {(MIGRATIONS / file.name).as_posix() for file in there} - examples
    for name in sorted(examples):
        file = rehearsal.directory / name
        edited = file.exists() and read(file) != read(change.made / name)
        goes = not (change.wanted / name).exists()
        if goes != file.exists():  # the team has deleted it, or has one with that name
            change.files.remove(name)
        elif own or edited:
            change.files.remove(name)
            what = "drops its tables" if goes else "creates the tables of the new models"
            rehearsal.problems.append(
                f"{name}: {'kept' if goes else 'not added'}, because you have migrations of your "
                f"own. Write one that {what}: "
                "uv run alembic upgrade head && uv run alembic revision --autogenerate"
            )
        elif goes:
            rehearsal.notes.append(
                f"{name} is deleted. To keep a database that has been migrated, restore it "
                f"({GO_BACK} -- {name}) and write a migration that drops its tables."
            )


def refuse_edited_starters(rehearsal: Rehearsal, change: Change) -> None:
    """Raise RefusedError if a file that would be deleted has been edited."""
    edited = [
        name
        for name in change.files
        if not (change.wanted / name).exists()
        and (rehearsal.directory / name).exists()
        and read(rehearsal.directory / name) != read(change.made / name)
    ]
    if edited:
        raise RefusedError(
            "You have edited these files, which would be deleted:\n\n  "
            + "\n  ".join(edited)
            + "\n\nMove what you need somewhere else, delete them (git rm), commit, and try again."
        )


def read(file: Path) -> bytes | None:
    """Return the content of a file, or None if it does not exist."""
    return file.read_bytes() if file.exists() else None


# ---- What is left to do ----


def missed_changes(
    rehearsal: Rehearsal, older: Mapping[str, Any], release: str, template: Template
) -> Iterator[str]:
    """Yield the changes of the release to files that the team has moved or deleted."""
    sources = template.changed_files(str(older["_commit"]), release)
    absent = {name for name in sources if not (rehearsal.directory / name).exists()}
    missed = absent.difference(rehearsal.changed("D"))
    if not missed:
        return
    # What an update changes if nobody has edited anything; it does not touch starters.
    unedited = rehearsal.render(older, "unedited")

    def git(*arguments: str) -> str:
        return run("git", *arguments, cwd=unedited, env=rehearsal.env)

    git("init", "--quiet")
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message", "unedited")
    rehearsal.copier("update", "--vcs-ref", release, unedited)
    for name in sorted(missed):
        if (unedited / name).exists() and (change := git("diff", "HEAD", "--", name)):
            total = git("diff", "--shortstat", "HEAD", "--", name).strip().partition(", ")[2]
            body = "".join(f"\n    {line}".rstrip(" ") for line in change.splitlines()[4:])
            yield (
                f"{name}: you have moved or deleted the file, and this release changes it "
                f"({total}). If you moved it, apply this change there:{body}"
            )


def left_to_resolve(rehearsal: Rehearsal) -> Iterator[str]:
    """Yield a problem for each conflict, and for TOML and YAML that can no longer be parsed."""
    for name in rehearsal.changed("AM"):
        file = rehearsal.directory / name
        conflicts = [
            n for n, line in enumerate(file.read_bytes().splitlines(), 1) if line in CONFLICT
        ]
        for number in conflicts:
            yield f"{name}:{number}: conflict; resolve it between <<<<<<< and >>>>>>>."
        if file.suffix == ".rej":
            yield f"{name}: your changes could not be merged; apply them by hand."
        elif not conflicts and (error := syntax_error(file)):
            yield f"{name}: can no longer be parsed: {error}"


def syntax_error(file: Path) -> str:
    """Return the syntax error of a TOML or YAML file, or an empty string."""
    try:
        if file.suffix == ".toml":
            tomllib.loads(file.read_text(encoding="utf-8"))
        elif file.suffix in {".yml", ".yaml"}:
            list(yaml.parse(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        return " ".join(str(error).split())
    return ""


def relock(rehearsal: Rehearsal) -> Iterator[str]:
    """Update uv.lock to match pyproject.toml; yield a problem if this fails."""
    if rehearsal.git("ls-files", "uv.lock"):
        # For its Python: the rehearsal has no environment.
        env = {"UV_PROJECT_ENVIRONMENT": str(PROJECT / ".venv"), **environment()}
        try:
            run(UV, "lock", cwd=rehearsal.directory, env=env)
        except CommandError as error:
            yield f"uv.lock: out of date, because `uv lock` fails:\n{error}"
        rehearsal.take_down()


# ---- The update ----


def bring_home(rehearsal: Rehearsal) -> None:
    """Apply the rehearsed update to the index and the working tree of the project."""
    in_the_way = [name for name in rehearsal.changed("A") if (PROJECT / name).exists()]
    if in_the_way:
        raise RefusedError(
            "The release adds files where you have files that git ignores. Move yours away:\n\n  "
            + "\n  ".join(in_the_way)
        )
    stages = names(rehearsal.unmerged)
    blobs = [stage.split()[1] for stage in stages]
    before = f"^{rehearsal.before}^{{tree}}"
    new = rehearsal.git("rev-list", "--objects", rehearsal.tree, *blobs, before)
    if new:
        rehearsal.git("pack-objects", "--quiet", objects() / "pack" / "pack", feed=new)
    try:
        top = Path(git("rev-parse", "--show-toplevel").strip())
        git("read-tree", "-m", "-u", rehearsal.before, rehearsal.tree, cwd=top)
        if stages:
            merged = {f"0 {'0' * 40}\t{stage.partition(TAB)[2]}" for stage in stages}
            feed = "".join(f"{line}\0" for line in [*merged, *stages])
            git("update-index", "-z", "--index-info", cwd=top, feed=feed)
        if stuck := [name for name in rehearsal.changed("D") if (PROJECT / name).exists()]:
            raise CommandError("cannot delete " + ", ".join(stuck))
    except CommandError as error:
        take_back(rehearsal, error)


def take_back(rehearsal: Rehearsal, reason: CommandError) -> NoReturn:
    """Undo a partial update; raise RefusedError, or HalfDoneError if that is not possible."""
    for name in rehearsal.changed("A"):
        with suppress(OSError):
            (PROJECT / name).unlink()
    with suppress(CommandError):
        git(*RESTORE, ".")
    if left := git("status", "--porcelain", "--", ".").rstrip():
        raise HalfDoneError(
            f"The update stopped halfway:\n\n{reason}\n\nThese files may be incomplete:\n\n{left}"
            f"\n\nFix the cause above. Then go back ({GO_BACK} .; delete the files with ??), and "
            "update again."
        ) from reason
    raise RefusedError(f"The update could not be applied to the project:\n\n{reason}") from reason


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore interrupts, even in the programs that this starts."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def interrupt(_number: int, _frame: object) -> None:
    """Raise KeyboardInterrupt once, so that the clean-up is not interrupted."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


# What the checks say about a place, and which of them fail; not how often or how fast.
COMPLAINT = re.compile(
    r"(?:FAILED|ERROR) \S+|Would reformat: .*|\S+?:\d+:(?:\d+:)? (?:error|[A-Z]+\d+|invalid-).*"
)


def complaints(directory: Path, venv: Path | None = None) -> Counter[str]:
    """Run the checks of a project, with output to stderr; return their complaints.

    With `venv`, create that environment for them, and print nothing.
    """
    env = {name: value for name, value in environment().items() if "COLOR" not in name}
    env |= {"RUFF_OUTPUT_FORMAT": "concise"}
    if venv:
        env |= {"UV_PROJECT_ENVIRONMENT": str(venv)}
    found: Counter[str] = Counter()
    with subprocess.Popen(
        [UV, "run", "poe", "check"],
        cwd=directory,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                if not venv:
                    with suppress(OSError):  # stderr is closed
                        print(line, end="", file=sys.stderr, flush=True)
                if complaint := COMPLAINT.match(line):
                    found[re.sub(r":\d+", "", complaint[0])] += 1
                elif line.startswith("Error: Subtask"):
                    found.update(f"{name} fails" for name in re.findall(r"'([\w-]+)'", line))
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return Counter()
    return found or Counter(["`uv run poe check` fails"])


def judge(rehearsal: Rehearsal) -> tuple[str, bool]:
    """Run the checks; return the outcome as text, and whether the update is fine."""
    try:
        now = complaints(PROJECT)
        if not now:
            return "and all checks pass. To review it: git diff --cached", True
        say("The checks fail. Running them without the update ...")
        project = set_up(rehearsal.scratch / "before", rehearsal.env)
        before = complaints(project.directory, rehearsal.scratch / "venv")
    except (KeyboardInterrupt, OSError):
        return "but the checks were not finished.", False
    if new := now - before:
        told = "".join(f"\n  {complaint}" for complaint in sorted(new))
        return f"but the checks fail, see above. These failures are new:\n{told}\n", False
    return "and the checks fail as they did before: there are no new failures.", True


def say(*lines: str) -> None:
    """Print without buffering, and to stderr once stdout is closed, as by `| head`."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        stdout = sys.stdout.fileno()
        os.dup2(sys.stderr.fileno(), stdout)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)


def announce(template: Template, current: str, release: str | None) -> None:
    """Print the current release, the one that is available, and what it changes."""
    if release is None:
        say(f"This project is at {current} of {template.source}. There is no newer release.")
        return
    say(f"This project is at {current} of {template.source}. {release} is available.")
    if changes := template.changes(current, release):
        say("", *(f"    {line}".rstrip() for line in changes.splitlines()), "")


def update(options: argparse.Namespace, directory: Path) -> int:
    """Run the command; return the exit code."""
    if not options.check:
        refuse_unfit_project()
    answers = read_answers(PROJECT)
    template = fetch_template(str(answers["_src_path"]), directory / "template.git")
    base = find_base(template, answers)
    release = choose_release(template, base, options.to)
    announce(template, answers["_commit"], release)
    if options.check:
        return 0 if release is None else 1
    if release is None and not options.data:
        return 0

    say("Trying the update in a separate repository ...")
    env = settings(template, directory)
    rehearsal = set_up(directory, env)
    rehearse(rehearsal, release or base, options.data, template)
    say(rehearsal.git("diff", "--stat=100", rehearsal.before, rehearsal.tree).rstrip("\n"))
    say(*(f"- {note}" for note in rehearsal.notes))
    say(*(f"* {problem}" for problem in rehearsal.problems))
    if options.dry_run:
        say("That was a dry run: nothing was changed.")
        return 1 if rehearsal.problems else 0
    with undisturbed():
        bring_home(rehearsal)

    done = f"Updated to {release}" if release else "Changed the answers"
    if rehearsal.problems:
        outcome, code = f"{done}, but each line with a * above needs your attention.", 1
    else:
        verdict, right = judge(rehearsal)
        outcome, code = f"{done}, {verdict}", 0 if right else 1
    # Commits only tracked files in this folder: nothing of other projects, and no secrets.
    answered = f"Answer {', '.join(options.data)}"
    message = f"Update the template to {release}" if release else answered
    keep = f"{GIT} commit -m {shlex.quote(message)} -- ."
    if rehearsal.unmerged:
        keep = f"{GIT} diff --check -- . && {keep}"  # not while conflict markers are left
    say("", outcome, f"To keep it:  {keep}", f"To go back:  {GO_BACK} .")
    return code


def main() -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="uv run scripts/update.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="check for a newer release")
    parser.add_argument("--dry-run", action="store_true", help="show what would change")
    parser.add_argument("--to", metavar="RELEASE", help="update to this release (default: newest)")
    parser.add_argument(
        *("-d", "--data"),
        action="append",
        default=[],
        metavar="NAME=ANSWER",
        help="change an answer; can be repeated",
    )
    options = parser.parse_args()
    for number in SIGNALS:
        signal.signal(number, interrupt)
    with tempfile.TemporaryDirectory(prefix="update-", ignore_cleanup_errors=True) as directory:
        try:
            return update(options, Path(directory))
        except (RefusedError, CommandError, OSError) as error:
            print(f"{error}\n\nNothing was changed.", file=sys.stderr)
            return 2
        except HalfDoneError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nInterrupted. Nothing was changed.", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
