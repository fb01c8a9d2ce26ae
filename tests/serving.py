"""Start a server by a command, and stop it for certain."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

STARTS_WITHIN = 40.0
STOPS_WITHIN = 20.0


def free_port() -> int:
    """Name a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Server:
    """A running server, which has answered once."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self, told_by: signal.Signals = signal.SIGTERM) -> str:
        """Ask it to end, wait until it has, and return what it said."""
        self.process.send_signal(told_by)
        self.process.wait(STOPS_WITHIN)
        return self.log.read_text(encoding="utf-8")


@contextmanager
def serving(
    *command: str, cwd: Path, port: int, log: Path, env: Mapping[str, str]
) -> Iterator[Server]:
    """Run a server that listens on `port`. When the context ends, so do all of its processes."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_for_answer(server)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what is left of its children
        process.wait(STOPS_WITHIN)


def wait_for_answer(server: Server) -> None:
    """Return when the server answers. Raises AssertionError when it ends or takes too long."""
    deadline = time.monotonic() + STARTS_WITHIN
    while not answers(server.url):
        log = server.log.read_text(encoding="utf-8")
        assert server.process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Say whether a server answers, whatever it says."""
    try:
        httpx.get(f"{url}/livez", timeout=2)
    except httpx.TransportError:
        return False
    return True


def is_listening(port: int) -> bool:
    """Say whether somebody listens on the port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def tracebacks_in(log: str) -> list[str]:
    """Return the lines of a log with tracebacks, except for e-mail, as no mail server is there."""
    lines = [line for line in log.splitlines() if "SMTP_HOST is not set" not in line]
    return [line for line in lines if "Traceback" in line]
