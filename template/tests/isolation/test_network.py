"""Tests cannot reach other machines. These would not, even without the guard."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import anyio.to_thread
import pytest
from fastapi import FastAPI
from sqlalchemy import make_url

from tests.harness.guard import IsolationError, guard
from tests.harness.network import hosts_of, network, run_for_all_tests
from tests.http_client import AsyncClient
from tests.isolation.conftest import ExpectRefusal

NAME, ADDRESS = "api.example.com", "192.0.2.1"  # RFC 5737: an address for documentation
Started = Callable[[], Awaitable[object]]


async def get_with_client(host: str) -> None:
    async with AsyncClient() as client:
        await client.get(f"http://{host}")


async def connect(host: str) -> None:
    await asyncio.open_connection(host, 80)


async def send_datagram(host: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", (host, 80))


async def connect_in_thread(host: str) -> None:
    await asyncio.to_thread(socket.create_connection, (host, 80))


async def open_url_in_thread(host: str) -> None:
    await anyio.to_thread.run_sync(urlopen, f"http://{host}:80")


async def connect_in_executor(host: str) -> None:
    run = asyncio.get_running_loop().run_in_executor
    await run(None, threading.current_thread)
    network.note_threads()  # as before each test: the pool's thread works for all tests
    with socket.socket() as sock:
        await run(None, sock.connect_ex, (host, 80))


@pytest.mark.parametrize("host", [NAME, ADDRESS])
@pytest.mark.parametrize(
    "call",
    [connect, send_datagram, connect_in_thread, open_url_in_thread, connect_in_executor],
)
async def test_other_machines_are_refused(
    call: Callable[[str], Awaitable[None]], host: str, expect_refusal: ExpectRefusal
) -> None:
    with expect_refusal(f"{host}:80 is not on this one.*@pytest.mark.allow_hosts..{host}"):
        await call(host)


async def test_client_is_refused(expect_refusal: ExpectRefusal) -> None:
    with expect_refusal(f"{NAME}:80 is not on this one"):
        await get_with_client(NAME)


@pytest.mark.parametrize("look_up", [socket.gethostbyname, socket.gethostbyname_ex])
def test_look_up_is_refused(
    look_up: Callable[[str], object], expect_refusal: ExpectRefusal
) -> None:
    with expect_refusal(f"{NAME} is not on this one"):
        look_up(NAME)


def test_thread_of_the_test_is_refused(expect_refusal: ExpectRefusal) -> None:
    def call() -> None:
        with suppress(Exception, IsolationError):
            socket.create_connection((NAME, 80))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert f"{NAME}:80 is not on this one" in guard.refusals.pop()


async def test_refusal_is_not_lost_when_the_application_swallows_it(
    app: FastAPI, client: AsyncClient
) -> None:
    @app.get("/rates")
    async def read_rates() -> str:
        with suppress(Exception):
            await connect(NAME)
        return "yesterday's"

    assert (await client.get("/rates")).json() == "yesterday's"
    assert f"{NAME}:80 is not on this one" in guard.refusals.pop()


def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104
async def test_this_machine_is_not_refused(host: str) -> None:
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()


async def test_unix_socket_is_not_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(hang_up, path):
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        await writer.wait_closed()


def test_number_of_an_address_is_looked_up_nowhere() -> None:
    assert socket.getaddrinfo(ADDRESS, 80)[0][4] == (ADDRESS, 80)


@pytest.mark.allow_hosts(ADDRESS, "*.example.com")
@pytest.mark.parametrize("host", [NAME, ADDRESS])
def test_marker_allows_hosts(host: str, expect_refusal: ExpectRefusal) -> None:
    network.check(host, 80)
    with expect_refusal("example.org is not on this one"):
        network.check("example.org")


@pytest.mark.allow_hosts([NAME])  # a list, as for pytest-socket
def test_marker_allows_the_addresses_of_a_name(expect_refusal: ExpectRefusal) -> None:
    network.find(NAME, [(None, None, None, None, ("192.0.2.3", 80))])
    network.check("192.0.2.3", 80)
    with expect_refusal(f"{ADDRESS} is not on this one"):
        network.check(ADDRESS)


def test_project_allows_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "allowed", ["*.example.com"])
    network.check(NAME, 80)
    run_for_all_tests(network.check, NAME)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql+asyncpg://user:password@postgres:5432/app_test", ["postgres"]),
        ("postgresql+asyncpg://user@/app_test?host=one:5432&host=two", ["one", "two"]),
        ("sqlite+aiosqlite:///./test.db", []),
    ],
)
def test_hosts_of_the_test_database_are_allowed(url: str, hosts: list[str]) -> None:
    assert hosts_of(make_url(url)) == hosts


# ---- Refusals that are no single test's fault ----


@pytest.fixture(scope="module")
async def started_before(anyio_backend: str) -> AsyncIterator[Started]:
    """Makes a task connect that was started before the test."""
    call, done = asyncio.Event(), asyncio.Event()

    async def wait_and_call() -> None:
        await call.wait()
        try:
            await connect(NAME)
        finally:
            done.set()

    task = asyncio.create_task(wait_and_call())

    async def started_before() -> object:
        call.set()
        await done.wait()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    yield started_before
    task.cancel()


async def test_no_test_is_blamed_for_a_task_of_all_tests(
    started_before: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "refusals", [])
    assert isinstance(await started_before(), ConnectionRefusedError)
    assert not guard.refusals
    assert f"{NAME}:80 is not on this one" in network.refusals[0]
    assert "not a single test" in network.refusals[0]


def test_no_test_is_blamed_for_a_thread_of_all_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "refusals", [])
    call = threading.Event()

    def wait_and_call() -> None:
        call.wait()
        with suppress(ConnectionRefusedError):
            network.check(NAME, 4318)

    thread = threading.Thread(target=wait_and_call, name="exporter")
    thread.start()
    network.note_threads()  # as before each test
    call.set()
    thread.join()
    assert not guard.refusals
    assert f"{NAME}:4318 is not on this one. The thread 'exporter'" in network.refusals[0]
