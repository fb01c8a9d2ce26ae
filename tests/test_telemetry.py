"""Traces and metrics of a real server reach a collector on this machine."""

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.conftest import with_projects
from tests.rendering import Project
from tests.serving import free_port, serving
from tests.test_server import PRODUCTION

ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery"}
IMPORT = """
import asyncio, sys
from app.main import app
async def start():
    async with app.router.lifespan_context(app):
        print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
asyncio.run(start())
"""


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the address of a collector, and what it has received at each path."""
    received: dict[str, bytes] = defaultdict(bytes)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received[self.path] += self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


@with_projects("postgresql", ci=["default"])
def test_requests_and_their_statements_are_one_trace(project: Project, tmp_path: Path) -> None:
    port = free_port()
    with project.new_database() as url, collector() as (address, received):
        env = {**PRODUCTION, "DATABASE_URL": url}
        project.check("uv", "run", "alembic", "upgrade", "head", **env)
        with serving(
            *(str(project.path / ".venv/bin/fastapi"), "run", "--port", str(port)),
            cwd=project.path, port=port, log=tmp_path / "log",
            env={**os.environ, **env, "OTEL_EXPORTER_OTLP_ENDPOINT": address},
        ) as server:  # fmt: skip
            assert httpx.post(f"{server.url}/users", json=ACCOUNT).status_code == 201
            lines = server.stop().splitlines()
    (line,) = [json.loads(each) for each in lines if '"/users"' in each]
    traces = received["/v1/traces"]
    assert traces.count(bytes.fromhex(line["trace_id"])) > 1
    assert b"POST /users" in traces
    assert b"INSERT INTO users" in traces
    assert b"http.server.request.duration" in received["/v1/metrics"]
    assert set(received) == {"/v1/traces", "/v1/metrics"}
    for secret in (*ACCOUNT.values(), "/livez"):
        assert secret.encode() not in traces


@with_projects("core")
def test_nothing_is_imported_where_no_collector_is_named(project: Project) -> None:
    assert project.check("uv", "run", "python", "-c", IMPORT).endswith("[]\n")
