"""A real server, started as documented, on a migrated database."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant
from tests.rendering import Project
from tests.serving import Server, free_port, is_listening, serving, tracebacks_in

PRODUCTION = {"ENVIRONMENT": "production", "SECRET_KEY": "a-key-that-nobody-else-knows-0123456789"}


def use_and_stop(server: Server, project: Project) -> str:
    """Use the server, stop it while a client follows a stream, and return its log."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        use(client, project)
        with stream_that_ends(client, project):
            return server.stop()


def use(client: httpx.Client, project: Project) -> None:
    """Do what a first visitor does."""
    assert client.get("/livez").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 200, ready.text
    docs = client.get("/docs")
    assert docs.status_code == 200
    assert "swagger-ui" in docs.text
    schema = client.get("/openapi.json").json()
    assert schema["info"]["title"] == project.answers.get("project_name", "My Service")
    if project.has_example:
        use_example(client)
    else:
        assert set(schema["paths"]) == {"/livez", "/readyz"}


def use_example(client: httpx.Client) -> None:
    account = {"email": "ada@example.com", "password": "correct horse battery"}
    assert client.post("/users", json=account).status_code == 201
    assert client.post("/users", json=account).status_code == 409
    form = {"username": account["email"], "password": account["password"]}
    token = client.post("/token", data=form).json()["access_token"]
    client.headers["authorization"] = f"Bearer {token}"
    assert client.post("/items", json={"title": "A lamp"}).status_code == 201
    assert [item["title"] for item in client.get("/items").json()["items"]] == ["A lamp"]


@contextmanager
def stream_that_ends(client: httpx.Client, project: Project) -> Iterator[None]:
    """Follow endless server-sent events; the server must end the stream properly."""
    if not project.has_example:
        yield
        return
    with client.stream("GET", "/items/feed") as response:
        assert response.status_code == 200
        yield
        assert response.read() == b""


@with_projects("postgresql", ci=["default"])
def test_it_serves_while_it_is_developed(project: Project, tmp_path: Path) -> None:
    check_that_it_serves(project, "dev", tmp_path / "log")


def check_that_it_serves(project: Project, command: str, log: Path) -> None:
    """Migrate a new database, start the server on it, use it, and stop it."""
    port = free_port()
    with project.new_database() as url:
        env = {"DATABASE_URL": url, **(PRODUCTION if command == "run" else {})}
        project.check("uv", "run", "alembic", "upgrade", "head", **env)
        with serving(
            *("uv", "run", "fastapi", command, "--port", str(port)),
            cwd=project.path, port=port, log=log, env={**os.environ, **env},
        ) as server:  # fmt: skip
            said = use_and_stop(server, project)
    assert "Application shutdown complete" in said, said
    assert tracebacks_in(said) == []
    assert not is_listening(port)
    assert server.process.returncode in {0, -15, 128 + 15}


@with_projects("default", ci=["postgresql"])
def test_it_is_alive_but_not_ready_without_its_database(project: Project, tmp_path: Path) -> None:
    port = free_port()
    if project.database == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/missing/service.db"
    else:
        url = f"postgresql+asyncpg://nobody@127.0.0.1:{free_port()}/missing"
    with serving(
        *("uv", "run", "fastapi", "run", "--port", str(port)),
        cwd=project.path, port=port, log=tmp_path / "log",
        env={**os.environ, **PRODUCTION, "DATABASE_URL": url},
    ) as server:  # fmt: skip
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.get(f"{server.url}/readyz", timeout=20).status_code == 503


@with_projects("core")
def test_no_key_is_asked_for_where_nothing_signs(project: Project, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/service.db"
    env = {"ENVIRONMENT": "production", "DATABASE_URL": url}
    project.check("uv", "run", "alembic", "upgrade", "head", **env)


BROKEN = Mutant(
    "an endpoint that breaks",
    "app/main.py",
    "    return app\n",
    "    app.add_api_route('/broken', lambda: {}['key'])\n    return app\n",
)


@with_projects("core")
def test_the_log_shows_where_a_request_failed_and_little_more(
    project: Project, tmp_path: Path
) -> None:
    copy, port = copied(project, tmp_path / "copy"), free_port()
    plant(BROKEN, copy)
    with serving(
        *(str(project.path / ".venv/bin/fastapi"), "run", "--port", str(port)),
        cwd=copy, port=port, log=tmp_path / "log", env=os.environ,
    ) as server:  # fmt: skip
        assert httpx.get(f"{server.url}/broken").status_code == 500
        traceback = server.stop().split("[error")[1].split("[info")[0]
    assert "KeyError: 'key'" in traceback
    assert "app/main.py" in traceback
    assert len(traceback.splitlines()) < 10, traceback


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ENVIRONMENT": "production"}, ["SECRET_KEY: is missing", "DATABASE_URL: is missing"]),
        (
            {**PRODUCTION, "DATABASE_URL": "postgresql://host/name"},
            ["DATABASE_URL: should be a URL with an asyncio driver"],
        ),
        ({"SECRET_KEY": "short"}, ["SECRET_KEY: "]),
        ({"LOG_LEVEL": "LOUD"}, ["LOG_LEVEL: "]),
        ({"ENVIRONMENT": "holiday"}, ["ENVIRONMENT: "]),
        (
            {
                "ENVIRONMENT": "production",
                "DATABASE_URL": "sqlite+aiosqlite:///x.db",
                "SECRET_KEY": "change-me-this-key-is-known-to-everybody",
            },
            ["SECRET_KEY: is the placeholder"],
        ),
    ],
)
@pytest.mark.parametrize(
    "command",
    [("fastapi", "run"), pytest.param(("alembic", "upgrade", "head"), marks=pytest.mark.ci)],
)
def test_a_setting_that_is_missing_or_wrong_is_named(
    command: tuple[str, ...],
    settings: dict[str, str],
    named: list[str],
    default_project: Project,
) -> None:
    done = default_project.run("uv", "run", *command, timeout=60, **settings)
    assert done.returncode != 0
    for name in named:
        assert name in done.stdout
    assert "Traceback" not in done.stdout
    assert ".env.example shows all of them" in done.stdout
