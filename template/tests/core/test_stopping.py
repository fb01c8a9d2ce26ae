"""What happens when the process is told to stop."""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.core.stopping import EventStreamMiddleware, EventStreams, when_told_to_stop


class Service:
    """An ASGI application that begins a response of `content_type`, and waits before it goes on."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type
        self.has_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self.content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.has_begun.set()
        await self.may_go_on.wait()
        await send({"type": "http.response.body", "body": b"all of it"})


async def bodies(service: Service, streams: EventStreams) -> list[Any]:
    """Serve one request, and return the bodies that were sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await EventStreamMiddleware(service, streams)({"type": "http"}, receive, send)
    return [message["body"] for message in sent[1:]]


@pytest.mark.parametrize(
    ("content_type", "sent"),
    [(b"text/event-stream; charset=utf-8", [b""]), (b"application/json", [b"all of it"])],
)
async def test_event_stream_ends_when_the_service_stops_and_the_rest_is_finished(
    anyio_backend: str, content_type: bytes, sent: list[bytes]
) -> None:
    service, streams = Service(content_type), EventStreams()
    async with asyncio.TaskGroup() as tasks:
        response = tasks.create_task(bodies(service, streams))
        await service.has_begun.wait()
        streams.stop()
        service.may_go_on.set()
    assert response.result() == sent


async def test_event_stream_that_begins_then_ends_at_once(anyio_backend: str) -> None:
    streams = EventStreams()
    streams.stop()
    assert await bodies(Service(b"text/event-stream"), streams) == [b""]


@pytest.fixture
def server_signals() -> Iterator[list[int]]:
    """The signals that a server has handled, which does so itself as uvicorn does."""
    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    yield handled
    signal.signal(signal.SIGTERM, before)


async def test_the_signal_reaches_the_application_and_the_server(
    anyio_backend: str, server_signals: list[int]
) -> None:
    stopped = asyncio.Event()
    with when_told_to_stop(stopped.set):
        signal.raise_signal(signal.SIGTERM)
        await stopped.wait()
    assert server_signals == [signal.SIGTERM]

    stopped.clear()
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert server_signals == [signal.SIGTERM, signal.SIGTERM]
    assert not stopped.is_set()
