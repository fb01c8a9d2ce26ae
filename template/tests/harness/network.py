"""The network guard: tests can reach this machine, and hosts that a marker or the project allows.

It watches Python's sockets in all threads until the process ends, so it even refuses what telemetry
sends at exit. It does not see sockets opened in C (uvloop, gRPC, libpq), or other processes.
"""

import asyncio
import functools
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from sqlalchemy import URL

from tests.harness.databases import configured_url
from tests.harness.guard import IsolationError, current_task, guard
from tests.harness.private import is_of_anyio, is_worker

REFUSED = (
    "Tests cannot reach other machines, and {place} is not on this one. Replace what connects to "
    "it with a test double, or allow the host: for one test with "
    "@pytest.mark.allow_hosts({host!r}), for all tests with `allow_hosts` in pytest.toml."
)
REFUSED_TO_ALL = (
    "Tests cannot reach other machines, and {place} is not on this one. {caller} tried to connect, "
    "not a single test: switch it off in the settings of tests/fixtures.py, or allow the host for "
    "all tests with `allow_hosts` in pytest.toml."
)

LOOK_UPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")
CALLS = ("connect", "connect_ex", "sendto")
INTERNET = {socket.AF_INET, socket.AF_INET6}

for_all_tests: ContextVar[bool] = ContextVar("for_all_tests", default=False)
"""Whether the running code is an async fixture that tests share, or one started it."""


class Network:
    """Decides who may connect where; remembers the refusals that are no single test's fault."""

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.allowed: list[str] = []
        """The host patterns that all tests may connect to."""
        self.test: pytest.Item | None = None
        self.is_setting_up_for_all = False
        """Whether a fixture that tests share is being set up."""
        self.threads_before: set[threading.Thread] = set()
        """The threads that do not belong to the test. Threads of pools work for anybody."""
        self._names: dict[str, str] = {}
        """The names that have been looked up, by address."""

    def note_threads(self) -> None:
        """Note the threads that exist before the test."""
        threads = {each for each in threading.enumerate() if not is_worker(each)}
        self.threads_before = threads - {threading.main_thread()}

    def find(self, host: Any, found: Any) -> None:
        """Remember the addresses of `host`."""
        for *_, address in found:
            self._names[address[0]] = text(host)

    def check(self, host: Any, port: object = None) -> None:
        """Raise IsolationError or ConnectionRefusedError unless `host` is local or allowed."""
        host = text(host)
        name = self._names.get(host, host)
        if is_local(host) or is_local(name):
            return
        is_of_the_test = self._is_of_the_test()
        allowed = [*self.allowed, *(allowed_by(self.test) if is_of_the_test else ())]
        if any(fnmatchcase(each, pattern) for each in (host, name) for pattern in allowed):
            return
        place = f"{name}:{text(port)}" if port else name
        if is_of_the_test:
            guard.refuse(REFUSED.format(place=place, host=name))
        self._refuse_to_all(place)

    def _is_of_the_test(self) -> bool:
        if self.test is None or self.is_setting_up_for_all or for_all_tests.get():
            return False
        return threading.current_thread() not in self.threads_before

    def _refuse_to_all(self, place: str) -> None:
        """Refuse `place` to code that belongs to no single test; the run fails."""
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            caller = f"The thread {thread.name!r}"
        elif self.test is None:
            caller = "A module"
        else:
            caller = "A fixture that tests share, such as the application's lifespan,"
        reason = REFUSED_TO_ALL.format(place=place, caller=caller)
        if reason not in self.refusals:
            self.refusals.append(reason)
        if is_called_by_pytest():
            raise IsolationError(reason)
        # Background work is expected to handle a network that is down.
        raise ConnectionRefusedError(reason)


network = Network()
"""The only one of this process, as there is one `socket` module."""


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes | bytearray) else str(value)


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return `host` as an address, or None if it is a name to look up."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_local(host: str) -> bool:
    """Return whether `host` is this machine."""
    if address := address_of(host):
        return address.is_loopback or address.is_unspecified
    return host in {"", "localhost", socket.gethostname()}


def allowed_by(test: pytest.Item | None) -> Iterator[str]:
    """Return the host patterns that the markers of a test allow."""
    for marker in test.iter_markers("allow_hosts") if test else ():
        for hosts in marker.args:
            yield from [hosts] if isinstance(hosts, str) else hosts


def is_called_by_pytest() -> bool:
    """Return whether pytest calls this code directly: a test, a fixture or a module."""
    if threading.current_thread() is not threading.main_thread():
        return False
    task = current_task()
    return task is None or is_of_anyio(task)


# ---- Wrapping sockets ----


@functools.cache
def watch() -> None:
    """Check name lookups, connections and datagrams from now on."""
    patch = pytest.MonkeyPatch()  # never undone
    for name in LOOK_UPS:
        patch.setattr(socket, name, checked_look_up(getattr(socket, name)))
    for name in CALLS:
        patch.setattr(socket.socket, name, checked_call(getattr(socket.socket, name)))
    patch.setattr(
        asyncio.BaseEventLoop, "run_in_executor", on_behalf(asyncio.BaseEventLoop.run_in_executor)
    )


def checked_look_up(look_up: Any) -> Any:
    """Wrap a function of the `socket` module that looks up a name."""

    @functools.wraps(look_up)
    def checked(host: Any, *arguments: Any, **options: Any) -> object:
        if host is not None and address_of(text(host)) is None:
            network.check(host, *arguments[:1])
        found = look_up(host, *arguments, **options)
        if look_up.__name__ == "getaddrinfo":
            network.find(host, found)
        return found

    return checked


def checked_call(call: Any) -> Any:
    """Wrap a socket method whose last argument is an address."""

    @functools.wraps(call)
    def checked(sock: socket.socket, *arguments: Any) -> object:
        if sock.family in INTERNET and arguments and isinstance(arguments[-1], tuple):
            try:
                network.check(*arguments[-1][:2])
            except IsolationError:
                sock.close()  # callers only close it after an OSError
                raise
        return call(sock, *arguments)

    return checked


def on_behalf(run_in_executor: Any) -> Any:
    """Wrap a method of event loops, so that a thread knows when it works for all tests."""

    @functools.wraps(run_in_executor)
    def run(
        loop: asyncio.AbstractEventLoop, executor: Any, function: Any, *arguments: Any
    ) -> object:
        if for_all_tests.get():
            function = functools.partial(run_for_all_tests, function)
        return run_in_executor(loop, executor, function, *arguments)

    return run


def run_for_all_tests(function: Any, *arguments: Any) -> object:
    with working_for_all_tests():
        return function(*arguments)


@contextmanager
def working_for_all_tests() -> Iterator[None]:
    """Note that code in the context, and what it starts, works for several tests."""
    before = for_all_tests.get()
    for_all_tests.set(True)
    try:
        yield
    finally:
        for_all_tests.set(before)


# ---- pytest hooks ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "allow_hosts",
        "hosts on other machines that tests may connect to, such as *.example.com",
        type="linelist",
    )
    watch()  # before the application is imported


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "allow_hosts(host, ...): the test may connect to these hosts on other machines."
    )
    network.allowed = config.getini("allow_hosts")
    network.allowed += hosts_of(configured_url())


def hosts_of(url: URL | None) -> list[str]:
    """Return the hosts of the database."""
    if url is None:
        return []
    hosts = [url.host or "", *url.normalized_query.get("host", ())]
    return [host.partition(":")[0] for host in hosts if host]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note the current test."""
    network.test = item
    network.note_threads()
    try:
        return (yield)
    finally:
        network.test = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, object, object]:
    """Note when a shared fixture is set up, and which threads it has started."""
    if fixturedef.scope == "function":
        return (yield)
    before, network.is_setting_up_for_all = network.is_setting_up_for_all, True
    try:
        return (yield)
    finally:
        network.note_threads()
        network.is_setting_up_for_all = before


# ---- Fail the run for refusals that are no single test's fault ----


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the refusals of a pytest-xdist worker."""
    refusals = getattr(node, "workeroutput", {}).get("network_refusals", [])
    network.refusals.extend(each for each in refusals if each not in network.refusals)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["network_refusals"] = network.refusals
    elif network.refusals and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = "".join(each.longreprtext for each in terminalreporter.getreports("error"))
    if refusals := [each for each in network.refusals if each not in told]:
        terminalreporter.section("refused", red=True)
        for reason in refusals:
            terminalreporter.line(reason)
