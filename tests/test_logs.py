"""The log of a real server in production: lines of JSON, one for each request, and no secrets."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant
from tests.rendering import Project
from tests.serving import Server, free_port, serving
from tests.test_server import PRODUCTION

SECRET = "correct horse battery"
EMAIL = "ada@example.com"
TALKATIVE = Mutant(
    "endpoints that log and fail",
    "app/main.py",
    "    return app\n",
    """    import logging
    import warnings

    import structlog
    from fastapi import WebSocket
    from sqlalchemy import text
    from app.core.database import SessionDep

    @app.get("/talk/{name}")
    async def talk(name: str) -> None:
        logging.getLogger("app.talk").info("Say %s to %s", name, "bob@example.com")
        structlog.get_logger("app.talk").info("Say it", name=name, password="hunter2")
        logging.getLogger("sqlalchemy.pool").warning("Say it")
        warnings.warn("Say it", stacklevel=1)

    @app.get("/fail")
    async def fail(session: SessionDep) -> None:
        await session.execute(text("SELECT :a FROM nowhere"), {"a": "carol@example.com"})

    @app.websocket("/socket/{name}")
    async def socket(name: str, websocket: WebSocket) -> None:
        await websocket.close()

    return app
""",
)


def use(client: httpx.Client, project: Project) -> None:
    """Make requests that succeed, fail, and try to write into the log."""
    client.get("/livez")
    client.get("/nowhere/1?token=hunter2")
    client.get("/talk/a%0A%7B%22event%22:%22forged%22%7D", headers={"X-Request-ID": "r-1"})
    # The server closes the connection of a request that fails.
    failed = httpx.get(f"{client.base_url}/fail", headers={"X-Request-ID": "r-2"})
    assert failed.json()["request_id"] == "r-2"
    client.get("/livez", headers={"X-Request-ID": "forged id"})
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    refused = httpx.get(f"{client.base_url}/socket/1?token=hunter2", headers=upgrade)
    assert refused.status_code == 403
    if project.has_example:
        account = {"email": EMAIL, "password": SECRET}
        assert client.post("/users", json=account).status_code == 201
        assert client.post("/users", json=account).status_code == 409
        form = {"username": EMAIL, "password": SECRET}
        token = client.post("/token", data=form).json()["access_token"]
        client.get("/items", headers={"Authorization": f"Bearer {token}"})
        client.get(f"/items?token={token}")


def lines_of(server: Server) -> list[dict[str, Any]]:
    """Return the lines of the log, without what the command prints before it starts."""
    log = server.stop()
    printed, _, lines = log.partition("{")
    assert "Traceback" not in printed
    return [json.loads(line) for line in f"{{{lines}".splitlines()]


@with_projects("default", ci=["postgresql"])
def test_the_log_of_production_is_json_without_secrets(project: Project, tmp_path: Path) -> None:
    copy, port = copied(project, tmp_path / "copy"), free_port()
    plant(TALKATIVE, copy)
    with project.new_database() as url:
        env = {**PRODUCTION, "DATABASE_URL": url}
        project.check("uv", "run", "alembic", "upgrade", "head", **env)
        with serving(
            *(str(project.path / ".venv/bin/fastapi"), "run", "--port", str(port)),
            cwd=copy, port=port, log=tmp_path / "log", env={**os.environ, **env},
        ) as server:  # fmt: skip
            with httpx.Client(base_url=server.url, timeout=20) as client:
                use(client, project)
            lines = lines_of(server)
    requests = [line for line in lines if line["logger"] == "app.access"]
    check_requests(requests, project)
    check_other_lines(lines)
    log = json.dumps(lines)
    for secret in ("hunter2", SECRET, "@example.com", "eyJ", "$argon2", "nowhere/1", "/?"):
        assert secret not in log, secret


def check_requests(lines: list[dict[str, Any]], project: Project) -> None:
    """Each request has one line; probes that succeed have none."""
    answered = Counter((line["route"], line["status"]) for line in lines)
    expected = {
        (None, 404): 1,
        ("/talk/{name}", 200): 1,
        ("/fail", 500): 1,
        ("/socket/{name}", 403): 1,
    }
    if project.has_example:
        expected |= {("/users", 201): 1, ("/users", 409): 1, ("/token", 200): 1}
        expected |= {("/items", 200): 1, ("/items", 401): 1}
    assert answered == expected
    assert len({line["request_id"] for line in lines}) == len(lines)
    assert all(line["duration_ms"] > 0 for line in lines)


def check_other_lines(lines: list[dict[str, Any]]) -> None:
    """All loggers write such lines, and those of a request have its id."""
    said = {line["event"].split("\n")[0] for line in lines}
    server = {"Waiting for application startup.", "Application shutdown complete."}
    assert server | {"My Service starts"} <= said
    loggers = {line["logger"] for line in lines if line.get("request_id") == "r-1"}
    assert loggers == {"app.talk", "sqlalchemy.pool", "py.warnings", "app.access"}
    assert "forged" not in {line["event"] for line in lines}
    (failed,) = [line for line in lines if line["event"] == "Exception in ASGI application"]
    assert (failed["level"], failed["request_id"]) == ("error", "r-2")
    assert "app/main.py" in failed["exception"]
    assert len(failed["exception"].splitlines()) < 40
