"""A real server stops under load, and with open streams and sockets."""

import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant
from tests.rendering import ROOT, Project
from tests.serving import Server, free_port, serving

CLIENTS = 16
REQUESTS = 300
"""After this many responses, the server is told to stop."""
SERVES_SLOWLY = Mutant(
    "endpoints that take their time",
    "app/main.py",
    "    return app\n",
    "    from app.unhurried import router\n\n    app.include_router(router)\n    return app\n",
)
ENDS = Mutant(
    "what the lifespan does at the end",
    "app/main.py",
    '    yield {"started_at": datetime.now(UTC)}\n',
    '    yield {"started_at": datetime.now(UTC)}\n    print("lifespan: ended", flush=True)\n',
)
COUNT = """
import asyncio, os
from sqlalchemy import text
from app.core.database import create_engine

async def count():
    engine = create_engine(os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        print(await connection.scalar(text("SELECT count(*) FROM items")))
    await engine.dispose()

asyncio.run(count())
"""


class NotAnsweredError(Exception):
    """No byte of a response has arrived: nobody listens, or nobody has read the request."""


@dataclass
class Load:
    """Clients that create and read items, one request after another, until nobody answers."""

    url: str
    token: str
    enough: threading.Event = field(default_factory=threading.Event)
    answered: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def be_a_client(self) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        with (
            suppress(NotAnsweredError),
            httpx.Client(base_url=self.url, headers=headers, timeout=20) as client,
        ):
            while True:
                self.note(answer(client, "POST", "/items", json={"title": "A lamp"}))
                self.note(answer(client, "GET", "/items", params={"limit": 2}))

    def note(self, status: int) -> None:
        with self.lock:
            self.answered[status] += 1
            if self.answered.total() == REQUESTS:
                self.enough.set()


def answer(client: httpx.Client, method: str, path: str, **options: Any) -> int:
    """Return the status of a complete response. Raises NotAnsweredError if there is none."""
    with ExitStack() as stack:
        try:
            response = stack.enter_context(client.stream(method, path, **options))
        except httpx.TransportError as error:
            raise NotAnsweredError from error
        response.read()
    return response.status_code


def sign_up(url: str) -> str:
    """Return an access token."""
    account = {"email": "ada@example.com", "password": "correct horse battery"}
    assert httpx.post(f"{url}/users", json=account, timeout=20).status_code == 201
    form = {"username": account["email"], "password": account["password"]}
    token: str = httpx.post(f"{url}/token", data=form, timeout=20).json()["access_token"]
    return token


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@with_projects("postgresql", ci=["default"])
@pytest.mark.ci
def test_no_request_is_cut_off_under_load(project: Project, workers: int, tmp_path: Path) -> None:
    port = free_port()
    with project.new_database() as url:
        env = {
            **os.environ,
            "DATABASE_URL": url,
            "WEB_CONCURRENCY": str(workers),
            "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "60",  # longer than the test waits
        }
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        with serving(
            *(str(project.path / ".venv/bin/uvicorn"), "app.main:app", "--port", str(port)),
            cwd=project.path, port=port, log=tmp_path / "log", env=env,
        ) as server:  # fmt: skip
            load = Load(server.url, sign_up(server.url))
            headers = {"authorization": f"Bearer {load.token}"}
            socket_url = f"{server.url.replace('http', 'ws')}/items/feed"
            with (
                httpx.stream("GET", f"{server.url}/items/feed", headers=headers) as feed,
                connect(socket_url, additional_headers=headers) as follower,
                ThreadPoolExecutor(CLIENTS) as pool,
            ):
                clients = [pool.submit(load.be_a_client) for _ in range(CLIENTS)]
                assert load.enough.wait(60)
                said = server.stop()
                for client in clients:
                    client.result(20)  # raises an error if a response is cut off
                feed.read()  # this one does if the stream is cut off
                assert close_code(follower) == CloseCode.SERVICE_RESTART
        stored = int(project.check("uv", "run", "python", "-c", COUNT, DATABASE_URL=url))
    assert set(load.answered) == {200, 201}
    assert stored == load.answered[201]
    assert said.count("Application shutdown complete") == workers, said
    assert "Traceback" not in said
    assert server.process.returncode in {0, -signal.SIGTERM}


def close_code(client: ClientConnection) -> int | None:
    """Read the rest, and return the code with which the server has closed the connection."""
    with suppress(ConnectionClosed):
        while True:
            client.recv(timeout=20)
    return client.close_code


# The requests, and how the response to each begins and ends when the server stops.
STOPPED = {
    "GET /slow?seconds=1": (b"HTTP/1.1 200 OK", b'"done"'),
    "GET /slow?seconds=60": (b"HTTP/1.1 503 Service Unavailable", b"}"),
    "POST /upload": (b"HTTP/1.1 503 Service Unavailable", b"}"),
    "GET /events": (b"HTTP/1.1 200 OK", b"\r\n0\r\n\r\n"),
    "GET /lines": (b"HTTP/1.1 200 OK", b"}\n\r\n"),  # not as if it were complete
}
SAID = [
    *("slow: cleaned up", "lines: cleaned up"),
    *("attentive: cleaned up after 1012", "inattentive: cleaned up"),
]


@pytest.mark.parametrize(
    ("told_by", "workers"),
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.ci),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
    ],
)
@with_projects("core")
def test_what_is_open_ends_in_time(
    project: Project, told_by: signal.Signals, workers: int, tmp_path: Path
) -> None:
    copy, port = copied(project, tmp_path / "copy"), free_port()
    shutil.copytree(ROOT / "tests/unhurried/app", copy / "app", dirs_exist_ok=True)
    for mutant in (SERVES_SLOWLY, ENDS):
        plant(mutant, copy)
    env = {"WEB_CONCURRENCY": str(workers), "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "2"}
    with ExitStack() as stack:
        server = stack.enter_context(serving(
            *(str(project.path / ".venv/bin/uvicorn"), "app.main:app", "--port", str(port)),
            cwd=copy, port=port, log=tmp_path / "log", env=os.environ | env,
        ))  # fmt: skip
        sockets = [
            stack.enter_context(connect(f"ws://127.0.0.1:{port}/{name}"))
            for name in ("attentive", "inattentive")
        ]
        clients = {
            asked: stack.enter_context(ask(port, asked)) for asked in (*STOPPED, "GET /large")
        }
        if told_by == signal.SIGTERM:  # after SIGINT, the interpreter would wait for the thread
            clients["GET /thread?seconds=60"] = stack.enter_context(
                ask(port, "GET /thread?seconds=60")
            )
        wait_for(server, ": began", len(clients) + len(sockets))

        said = server.stop(told_by)

        for asked, (begins, ends) in STOPPED.items():
            response = read(clients[asked])
            assert response.startswith(begins), asked
            assert response.endswith(ends), asked
        assert [close_code(each) for each in sockets] == [CloseCode.SERVICE_RESTART] * 2
    assert all(line in said for line in SAID), said
    assert said.count("lifespan: ended") == workers, said
    assert "Traceback" not in said
    assert server.process.returncode in {0, -told_by}


def ask(port: int, asked: str) -> socket.socket:
    """Send a request, perhaps without its body, and read nothing of the response."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    body = "Content-Length: 9\r\n" if asked.startswith("POST") else ""
    client.sendall(f"{asked} HTTP/1.1\r\nHost: localhost\r\n{body}\r\n".encode())
    return client


def read(client: socket.socket) -> bytes:
    """Read everything until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def wait_for(server: Server, text: str, times: int) -> None:
    """Wait until the server has logged a text this many times."""
    deadline = time.monotonic() + 20
    while server.log.read_text(encoding="utf-8").count(text) < times:
        assert time.monotonic() < deadline, server.log.read_text(encoding="utf-8")
        time.sleep(0.05)
