"""A real server refuses what no client should send, and stays small and fast."""

import os
import socket
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant, run_tests
from tests.rendering import Project
from tests.serving import Server, free_port, serving, tracebacks_in
from tests.test_load import UNLIMITED
from tests.test_server import PRODUCTION

ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery"}
MEGABYTE = 1_000_000
GROWTH = 100  # megabytes by which the server may grow

VALUES = [
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"1" * 5000,
    b"-1",
    b"true",
    b"[]",
    b"{}",
    b'""',
    rb'"\u0000"',
    rb'"\ud800"',
    rb'"ada\ud800@example.com"',
    rb'"ada@\ud800.example"',
    b'"%s"' % (b"a" * MEGABYTE),
    b'"%s@example.com"' % (b"a." * 100_000),
    b"[" * 500 + b"]" * 500,
    b"[%s]" % b",".join([b'{"name": "a"}'] * 10_000),
]
BODIES = [
    *(
        b"",
        b"\xff",
        b"\0",
        b"{",
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        '{"title": "a"}'.encode("utf-16"),
    ),
    *VALUES,
    b'{"title": "one", "title": "two"}',
    rb'{"title": "Lamp", "\ud800": 1}',
    b"username=ada&username=bob&password=a&password=b",
    b"username=%00&password=%ED%A0%80%FF",
    b"username=ada&password=" + b"a" * MEGABYTE,
    b"&".join([b"a=b"] * 5000),
]
FIELDS = ["title", "price", "status", "tags", "description", "email", "password"]
GOOD = {
    "title": b'"Lamp"',
    "email": b'"ada@example.com"',
    "password": b'"correct horse battery"',
}
CONTENT_TYPES = [
    "application/json",
    "application/json; charset=utf-7",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "text/plain",
    "nonsense",
    "",
]
WRITES = [("POST", "/users"), ("POST", "/token"), ("POST", "/items"), ("PATCH", "/items/1")]
PARTS = [
    b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\n\xff\r\n',
    b'--x\r\nContent-Disposition: form-data; name="password"; filename="a"\r\n\r\n\0\r\n',
    b"--x\r\n\r\n\r\n",
    b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\r\n' * 2000,
]
CURSORS = [
    *("", "%00", "%FF", "%ED%A0%80", "a", "=", "W10", "a" * 8000),
    *(
        urlsafe_b64encode(text).decode()
        for text in (
            *(b"\xff", b"{}", b"[]", b"[NaN]", b"[1e999]", b'["\\ud800"]', b"[-1]", b"null"),
            *(
                b"[" * 3000,
                b"[%s]" % (b"9" * 4000),
                b'["id",%s]' % (b"9" * 30),
                b'["id","\\u0000"]',
            ),
        )
    ),
]
QUERIES = [
    *(f"cursor={cursor}" for cursor in CURSORS),
    *(
        "limit=NaN",
        "limit=-1",
        "limit=1e999",
        f"limit={'9' * 5000}",
        "limit=%FF",
        "limit=1&limit=2",
    ),
    *("status=%00", "max_price=NaN", "max_price=Infinity", f"max_price={'9' * 5000}", "nonsense=1"),
]
IDS = [
    "0",
    "-1",
    "2147483648",
    "9" * 30,
    "9" * 5000,
    "%00",
    "%FF",
    "%ED%A0%80",
    "1.5",
    "NaN",
    "\N{ARABIC-INDIC DIGIT ONE}",
]
HEADERS = [
    *(
        {"Authorization": value}
        for value in ("", "Bearer", b"Bearer \xff", "Basic YQ==", b"\0x"[1:])
    ),
    {"Authorization": "Bearer " + "a." * 4000},
    {"Authorization": f"Bearer {urlsafe_b64encode(b'[' * 20_000).decode()}.e30.e30"},
    *({"Last-Event-ID": value} for value in ("x", "-1", "9" * 5000, b"\xff")),
    *({"Host": value} for value in ("", "evil.com", "a b", "[", b"\xff", "a:b:c")),
    {"Content-Length": "0", "Expect": "nonsense"},
    {"Accept": b"\xff", "Cookie": b"\xff=\xff;;;="},
]


def requests() -> Iterator[dict[str, Any]]:
    """Yield the requests, as arguments of httpx.Client.build_request."""
    for (method, url), content_type, body in product(WRITES, CONTENT_TYPES, BODIES):
        # Large bodies are all refused in the same way: once is enough.
        if len(body) < MEGABYTE or content_type == "application/json":
            headers = {"Content-Type": content_type}
            yield {"method": method, "url": url, "content": body, "headers": headers}
    for (method, url), field, value in product(WRITES, FIELDS, VALUES):
        fields = {**GOOD, field: value}
        body = b"{%s}" % b",".join(b'"%s":%s' % (name.encode(), fields[name]) for name in fields)
        headers = {"Content-Type": "application/json"}
        yield {"method": method, "url": url, "content": body, "headers": headers}
    for charset, part in product(("utf-8", "unicode_escape", "hex", "nonsense"), PARTS):
        headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        yield {
            "method": "POST",
            "url": "/token",
            "content": part + b"--x--\r\n",
            "headers": headers,
        }
    for query in QUERIES:
        yield {"method": "GET", "url": f"/items?{query}"}
    for method, item_id in product(("GET", "PATCH", "DELETE"), IDS):
        yield {"method": method, "url": f"/items/{item_id}"}
    for url, bad in product(("/items", "/items/feed?follow=false", "/nowhere"), HEADERS):
        yield {"method": "GET", "url": url, "headers": bad}
    for method in ("TRACE", "OPTIONS", "PUT", "get"):
        yield {"method": method, "url": "/items"}


@contextmanager
def server_of(project: Project, directory: Path) -> Iterator[Server]:
    """Start the server on a migrated database."""
    port = free_port()
    with project.new_database() as url:
        env = {**PRODUCTION, **UNLIMITED, "DATABASE_URL": url}
        project.check("uv", "run", "alembic", "upgrade", "head", **env)
        with serving(
            *(str(project.path / ".venv/bin/fastapi"), "run", "--host", "127.0.0.1"),
            *("--port", str(port)),
            cwd=project.path, port=port, log=directory / "log", env={**os.environ, **env},
        ) as server:  # fmt: skip
            yield server


def log_in(client: httpx.Client) -> None:
    """Sign up, log in, and create an item."""
    assert client.post("/users", json=ACCOUNT).status_code == 201
    form = {"username": ACCOUNT["email"], "password": ACCOUNT["password"]}
    token = client.post("/token", data=form).json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"
    assert client.post("/items", json={"title": "Lamp"}).json()["id"] == 1


def fault_of(response: httpx.Response) -> str | None:
    """Return what is wrong with a response, if anything."""
    status = response.status_code
    if status < 400:
        return None
    if status >= 500:
        return f"{status}"
    if response.request.method == "HEAD":
        return None
    if response.headers.get("content-type") != "application/problem+json":
        return f"{status} is no problem: {response.text[:200]}"
    problem = response.json()
    if problem["status"] != status or any("input" in part for part in problem.get("errors", ())):
        return f"{status} says {problem}"
    return None


def peak_memory(server: Server) -> float:
    """Return the server's peak memory so far, in megabytes."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise AssertionError("The kernel does not tell.")


def large_body() -> Iterator[bytes]:
    """Make 100 MB, a megabyte at a time."""
    for _ in range(100):
        yield b" " * MEGABYTE


@with_projects("default", ci=["postgresql"])
def test_bad_input_is_refused(project: Project, tmp_path: Path) -> None:
    check_bad_input(project, tmp_path, every=20)


@pytest.mark.slow
@with_projects("default", "postgresql")
def test_all_bad_input_is_refused(project: Project, tmp_path: Path) -> None:
    check_bad_input(project, tmp_path, every=1)


def check_bad_input(project: Project, tmp_path: Path, every: int) -> None:
    """Send one in `every` requests, large bodies and slow clients to a server."""
    with server_of(project, tmp_path) as server:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            log_in(client)
            before = peak_memory(server)
            faults = []
            for arguments in islice(requests(), None, None, every):
                response = client.send(client.build_request(**arguments))
                if fault := fault_of(response):
                    faults.append(f"{fault}\n  {str(arguments)[:300]}")
            assert not faults, "\n".join([f"{len(faults)} faults", *faults[:30]])
            for method, url in WRITES:
                is_form = url == "/token"
                content_type = f"application/{'x-www-form-urlencoded' if is_form else 'json'}"
                for length in ({"Content-Length": str(100 * MEGABYTE)}, {}):
                    headers = {"Content-Type": content_type, **length}
                    response = client.request(method, url, content=large_body(), headers=headers)
                    assert response.status_code in {400, 413}, response.text
                    assert fault_of(response) is None
            check_slow_clients(server, client)
            growth = peak_memory(server) - before
        said = server.stop()
    assert growth < GROWTH, f"{growth} MB"
    assert tracebacks_in(said) == []


@pytest.mark.slow
@with_projects("default", "postgresql")
def test_hundreds_of_examples_of_each_operation_are_answered_as_declared(
    project: Project, tmp_path: Path
) -> None:
    directory = copied(project, tmp_path / "project")
    harness, test = "tests/harness/contract.py", "tests/openapi/test_contract.py"
    plant(Mutant("many", harness, "max_examples=20", "max_examples=500"), directory)
    plant(Mutant("for long", test, "timeout(180)", "timeout(1800)"), directory)
    code, output = run_tests(project, directory, test)
    assert code == 0, output


def check_slow_clients(server: Server, client: httpx.Client) -> None:
    """Check that clients that do not finish their requests block nobody else."""
    url = httpx.URL(server.url)
    with ExitStack() as slow:
        for number in range(100):
            head = b"POST /users HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            body = b"Content-Length: 1000\r\n\r\n{" if number % 2 else b""
            connection = slow.enter_context(socket.create_connection((url.host, url.port)))
            connection.sendall(head + body)
        assert client.get("/items").status_code == 200
        assert client.get("/readyz").status_code == 200
