"""The PostgreSQL server for development, which `uv run poe database` starts."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.mutants import copied
from tests.rendering import Project, new_directory, run, start
from tests.serving import free_port, is_listening, serving

COMMAND = ("uv", "run", "poe", "--quiet", "database")
ONE_TEST = (
    "uv",
    "run",
    "pytest",
    "tests/core/test_health.py",
    "-k",
    "ready_when_its_database_answers",
)
ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery"}


@dataclass(frozen=True)
class Checkout:
    """A copy of a project, with a port for its database."""

    path: Path
    env: dict[str, str]
    port: int

    @contextmanager
    def database(self) -> Iterator[subprocess.Popen[str]]:
        """Start the database, and wait until it is ready."""
        process = start(*COMMAND, cwd=self.path, env=self.env)
        with process:
            assert process.stdout is not None
            try:
                said = process.stdout.readline()
                url = f"postgresql://postgres@localhost:{self.port}/my-service"
                assert said == f"Serving {url} from .database/. Ctrl-C stops it.\n"
                yield process
            finally:
                with suppress(OSError):
                    os.kill(self.server(), signal.SIGKILL)

    def server(self) -> int:
        """Return the server's process."""
        return int((self.path / ".database/data/postmaster.pid").read_text().split()[0])


@pytest.fixture
def checkout(installed: Callable[[str], Project]) -> Iterator[Checkout]:
    project, port = installed("postgresql"), free_port()
    with new_directory("checkout") as directory:
        path = copied(project, directory / "my-service")
        example = path / ".env.example"
        text = example.read_text(encoding="utf-8")
        (path / ".env").write_text(text.replace(":5432/", f":{port}/"), encoding="utf-8")
        yield Checkout(path, {"UV_PROJECT_ENVIRONMENT": str(project.path / ".venv")}, port)


@pytest.mark.ci
def test_the_service_finds_its_rows_again(checkout: Checkout, tmp_path: Path) -> None:
    port, upgrade = free_port(), ("uv", "run", "alembic", "upgrade", "head")
    refused = run(*upgrade, cwd=checkout.path, env=checkout.env)
    assert refused.returncode == 1
    assert refused.stdout.startswith("No connection to the database, postgresql+asyncpg://")
    assert len(refused.stdout.splitlines()) < 3, refused.stdout

    with checkout.database() as database:
        migrated = run(*upgrade, cwd=checkout.path, env=checkout.env)
        assert migrated.returncode == 0, migrated.stdout
        assert "Running upgrade  -> 0001, Users and their items" in migrated.stdout
        url = f"postgresql+asyncpg://postgres@localhost:{checkout.port}/test"
        tested = run(*ONE_TEST, cwd=checkout.path, env={**checkout.env, "TEST_DATABASE_URL": url})
        assert tested.returncode == 0, tested.stdout
        with (
            serving(
                *("uv", "run", "fastapi", "run", "--port", str(port)),
                cwd=checkout.path, port=port, log=tmp_path / "log",
                env={**os.environ, **checkout.env},
            ) as server,
            httpx.Client(base_url=server.url, timeout=20) as client,
        ):  # fmt: skip
            assert client.post("/users", json=ACCOUNT).status_code == 201

            # Ctrl-C, while the service is connected.
            os.killpg(database.pid, signal.SIGINT)
            said, _ = database.communicate(timeout=20)
            assert said == ""
            assert not is_listening(checkout.port)

            with checkout.database() as killed:
                assert client.post("/users", json=ACCOUNT).status_code == 409
                os.kill(checkout.server(), signal.SIGKILL)
                said, _ = killed.communicate(timeout=20)
                assert killed.returncode == 1
                assert "The server has ended" in said

            with checkout.database() as terminated:
                assert client.post("/users", json=ACCOUNT).status_code == 409
                terminated.terminate()
                said, _ = terminated.communicate(timeout=20)
                assert said == ""
                assert not is_listening(checkout.port)


@pytest.mark.ci
def test_a_server_that_runs_already_is_named(checkout: Checkout) -> None:
    with checkout.database():
        again = run(*COMMAND, cwd=checkout.path, env=checkout.env)
        stop = f"To stop it: Ctrl-C, or kill -INT {checkout.server()}"
        assert (again.returncode, again.stdout) == (1, f"The database runs already. {stop}\n")


def test_a_port_that_is_taken_is_named(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", checkout.port)):
        done = run(*COMMAND, cwd=checkout.path, env=checkout.env)
    assert done.returncode == 1
    assert done.stdout.startswith(f"Something else listens at localhost:{checkout.port}. Stop that")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://ada:secret@db.example.com/app",
        "postgresql+asyncpg://localhost",
        "postgresql+asyncpg:///app?host=%2Frun%2Fpostgresql",
    ],
)
def test_no_other_server_is_imitated(url: str, checkout: Checkout) -> None:
    done = run(*COMMAND, cwd=checkout.path, env={**checkout.env, "DATABASE_URL": url})
    assert done.returncode == 1
    assert done.stdout.startswith(f"DATABASE_URL is {url.replace('secret', '***')}. This command")
    assert not (checkout.path / ".database").exists()
