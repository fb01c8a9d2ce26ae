"""Requests to a server, many at once, over connections that stay open; and how long each takes."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What is sent, again and again."""

    method: str
    path: str
    token: str = ""
    body: dict[str, Any] | None = None
    form: str = ""

    def encoded(self) -> bytes:
        """Return the bytes of HTTP/1.1."""
        content = self.form.encode() if self.form else b""
        kind = "application/x-www-form-urlencoded"
        if self.body is not None:
            content, kind = json.dumps(self.body).encode(), "application/json"
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost"]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")
        if content:
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass
class Client:
    """A connection to a server on this machine. It opens itself, again where it was closed."""

    port: int
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None)

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the response."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        return int(head[9:12]), body

    def close(self) -> None:
        """Close the connection."""
        if self.streams is not None:
            self.streams[1].close()


@dataclass(frozen=True)
class Load:
    """How fast the requests were answered."""

    per_second: float
    p99_ms: float


async def send(port: int, request: Request) -> Any:
    """Send one request; return the JSON of the answer. Raises RuntimeError for an error."""
    client = Client(port)
    status, body = await client.send(request.encoded())
    client.close()
    if status >= 400:
        raise RuntimeError(f"{request.method} {request.path}: {status} {body!r}")
    return json.loads(body)


async def load(port: int, request: Request, *, clients: int, number: int) -> Load:
    """Let so many clients send the request, in all so many times."""
    encoded, left, times = request.encoded(), iter(range(number)), list[float]()

    async def run() -> None:
        client = Client(port)
        for _ in left:
            start = time.perf_counter()
            status, body = await client.send(encoded)
            times.append(time.perf_counter() - start)
            if status >= 400:
                raise RuntimeError(f"{request.method} {request.path}: {status} {body!r}")
        client.close()

    start = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(clients)))
    taken = time.perf_counter() - start
    return Load(number / taken, 1000 * percentile(times, 0.99))


def percentile(times: list[float], share: float) -> float:
    """Return the time within which this share has ended."""
    return sorted(times)[int(share * (len(times) - 1))]
