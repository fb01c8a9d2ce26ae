"""What happens to requests and streams when the process is told to stop."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.core.stopping import Stopping, StoppingMiddleware, when_told_to_stop

JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
HTTP = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/report", "headers": []}


class Service:
    """An ASGI application that starts a response of `content_type`, then waits, then goes on."""

    def __init__(self, content_type: bytes | None) -> None:
        self.content_type = content_type
        self.has_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.content_type is None:
            self.has_begun.set()
            await self.may_go_on.wait()
        headers = [(b"content-type", self.content_type or JSON)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.has_begun.set()
        await self.may_go_on.wait()
        await send({"type": "http.response.body", "body": b"all of it"})


async def nothing() -> Message:
    """Receive no message, ever."""
    await asyncio.Event().wait()
    raise AssertionError


async def serve(app: Any, stopping: Stopping, scope: Scope, receive: Receive) -> list[Message]:
    """Serve one request or socket, and return what was sent."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await StoppingMiddleware(app, stopping)(scope, receive, send)
    return sent


def bodies(sent: list[Message]) -> list[Any]:
    """Return the bodies of a response."""
    return [message["body"] for message in sent[1:]]


@pytest.mark.parametrize(
    ("content_type", "expected"), [(EVENTS, [b""]), (JSON, [b"all of it"]), (None, [b"all of it"])]
)
async def test_event_stream_ends_when_the_service_stops_and_the_rest_is_finished(
    anyio_backend: str, content_type: bytes | None, expected: list[bytes]
) -> None:
    service, stopping = Service(content_type), Stopping(timeout=1000)
    async with asyncio.TaskGroup() as tasks:
        response = tasks.create_task(serve(service, stopping, HTTP, nothing))
        await service.has_begun.wait()
        stopping.begin()
        await asyncio.sleep(0)
        stopping.begin()  # a supervisor and a parent process may both tell it
        service.may_go_on.set()
    assert bodies(response.result()) == expected


async def test_event_stream_that_begins_then_ends_at_once(anyio_backend: str) -> None:
    stopping = Stopping(timeout=1000)
    stopping.begin()
    assert bodies(await serve(Service(EVENTS), stopping, HTTP, nothing)) == [b""]


async def test_event_stream_may_end_by_itself(anyio_backend: str) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", EVENTS)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await asyncio.Event().wait()
        finally:
            await send({"type": "http.response.body", "body": b"the last event"})

    stopping = Stopping(timeout=1000)
    stopping.begin()
    assert bodies(await serve(stream, stopping, HTTP, nothing)) == [b"the last event"]


async def test_event_stream_that_breaks_when_it_is_ended_is_whole(anyio_backend: str) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", EVENTS)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ExceptionGroup("its pipe", [anyio.BrokenResourceError()]) from None

    stopping = Stopping(timeout=1000)
    stopping.begin()
    assert bodies(await serve(stream, stopping, HTTP, nothing)) == [b""]


@pytest.mark.parametrize(
    ("content_type", "error", "is_raised"),
    [
        (EVENTS, anyio.BrokenResourceError(), False),
        (EVENTS, ValueError(), True),
        (JSON, anyio.BrokenResourceError(), True),
    ],
)
async def test_event_stream_whose_client_leaves_is_no_error(
    anyio_backend: str, content_type: bytes, error: Exception, is_raised: bool
) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        raise ExceptionGroup("its pipe", [error])

    with pytest.raises(ExceptionGroup) if is_raised else nullcontext():
        await serve(stream, Stopping(timeout=1000), HTTP, nothing)


async def test_request_that_takes_too_long_is_answered_503(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = Stopping(timeout=0)
    stopping.begin()
    start, body = await serve(Service(None), stopping, HTTP, nothing)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert b'"detail": "The service is stopping"' in body["body"]
    assert "Gave up GET '/report'" in caplog.text


async def test_response_that_takes_too_long_is_not_ended_as_if_it_were_whole(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = Stopping(timeout=0)
    stopping.begin()
    assert bodies(await serve(Service(JSON), stopping, HTTP, nothing)) == []
    assert "Gave up GET '/report'" in caplog.text


async def test_error_of_the_application_remains_its_own(anyio_backend: str) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of an upstream service")

    with pytest.raises(TimeoutError, match="upstream"):
        await serve(slow, Stopping(timeout=1000), HTTP, nothing)


@pytest.mark.parametrize(("version", "is_said"), [("1.1", True), ("2", False)])
async def test_response_says_that_the_connection_ends(
    anyio_backend: str, version: str, is_said: bool
) -> None:
    stopping, service = Stopping(timeout=1000), Service(JSON)
    service.may_go_on.set()
    scope = {**HTTP, "http_version": version}
    headers = (b"connection", b"close")
    assert headers not in (await serve(service, stopping, scope, nothing))[0]["headers"]
    stopping.begin()
    assert (headers in (await serve(service, stopping, scope, nothing))[0]["headers"]) is is_said


async def test_endpoint_of_a_socket_that_receives_ends_in_its_own_way(anyio_backend: str) -> None:
    stopping, ended = Stopping(timeout=1000), []
    messages: list[Message] = [
        {"type": "websocket.disconnect", "code": 1012},
        {"type": "websocket.connect"},
    ]

    async def received() -> Message:
        return messages.pop()

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        ended.append((await receive())["code"])
        for _ in range(10):  # the time limit of an endpoint that does not receive passes
            await asyncio.sleep(0)
        ended.append("in its own way")

    stopping.begin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.core.stopping.SOCKET_TIMEOUT", 0)
        await serve(endpoint, stopping, {"type": "websocket"}, received)
    assert ended == [1012, "in its own way"]


async def test_endpoint_of_a_socket_that_does_not_receive_is_ended(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping, has_cleaned_up = Stopping(timeout=1000), asyncio.Event()
    monkeypatch.setattr("app.core.stopping.SOCKET_TIMEOUT", 0)

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # awaiting is allowed
            await receive()
            has_cleaned_up.set()

    async def disconnected() -> Message:
        return {"type": "websocket.disconnect", "code": 1012}

    stopping.begin()
    await serve(endpoint, stopping, {"type": "websocket"}, disconnected)
    assert has_cleaned_up.is_set()


async def test_lifespan_is_not_limited(anyio_backend: str) -> None:
    stopping = Stopping(timeout=0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        await send({"type": "lifespan.shutdown.complete"})

    stopping.begin()
    sent = await serve(app, stopping, {"type": "lifespan"}, nothing)
    assert sent == [{"type": "lifespan.shutdown.complete"}]


@pytest.fixture
def server_signals() -> Iterator[list[int]]:
    """The signals that a server has handled, with its own handler, like uvicorn."""
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
