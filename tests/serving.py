"""Start a server with a command, and make sure that it stops."""

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
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Server:
    """A running server that has answered once."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self, told_by: signal.Signals = signal.SIGTERM) -> str:
        """Tell it to stop, wait until it has, and return its log."""
        self.process.send_signal(told_by)
        self.process.wait(STOPS_WITHIN)
        return self.log.read_text(encoding="utf-8")


@contextmanager
def serving(
    *command: str, cwd: Path, port: int, log: Path, env: Mapping[str, str]
) -> Iterator[Server]:
    """Run a server that listens on `port`. When the context ends, all its processes end."""
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
            os.killpg(process.pid, signal.SIGKILL)  # with any children that are left
        process.wait(STOPS_WITHIN)


def wait_for_answer(server: Server) -> None:
    """Wait until the server answers. Raises AssertionError if it ends or takes too long."""
    deadline = time.monotonic() + STARTS_WITHIN
    while not answers(server.url):
        log = server.log.read_text(encoding="utf-8")
        assert server.process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Return whether a server answers, with any response."""
    try:
        httpx.get(f"{url}/livez", timeout=2)
    except httpx.TransportError:
        return False
    return True


def is_listening(port: int) -> bool:
    """Return whether somebody listens on the port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def tracebacks_in(log: str) -> list[str]:
    """Return the log lines with tracebacks, except about e-mail, as there is no mail server."""
    lines = [line for line in log.splitlines() if "SMTP_HOST is not set" not in line]
    return [line for line in lines if "Traceback" in line]
