"""Shut down gracefully: streams end at once, and other requests have a time limit."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

from anyio import BrokenResourceError
from fastapi import status
from fastapi.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.problems import problem

Handler = Callable[[int, FrameType | None], object]

SOCKET_TIMEOUT = 0.5
"""Seconds for the endpoint of a WebSocket to notice that the server has closed it."""

logger = logging.getLogger(__name__)


class Stopping:
    """Whether the service is stopping, and how long each request may then continue.

    `timeout` is in seconds; requests that take longer are cancelled.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._began_at: float | None = None
        self._open: dict[asyncio.Timeout, float] = {}

    @property
    def has_begun(self) -> bool:
        """Whether the service has been told to stop."""
        return self._began_at is not None

    @property
    def seconds_left(self) -> float:
        """How long running requests may continue at most; 0 when the time is up."""
        if self._began_at is None:
            return self.timeout
        return max(0.0, self._began_at + self.timeout - asyncio.get_running_loop().time())

    def begin(self) -> None:
        """Begin to stop. A second call has no effect: supervisors may send a signal twice."""
        if self._began_at is None:
            self._began_at = asyncio.get_running_loop().time()
            for request, seconds in self._open.items():
                request.reschedule(self._began_at + seconds)

    def limit(self, request: asyncio.Timeout, seconds: float) -> None:
        """Let a request continue for `seconds` after the service is told to stop."""
        self._open[request] = seconds
        if self._began_at is not None and not request.expired():
            request.reschedule(self._began_at + seconds)

    @asynccontextmanager
    async def limited(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """Cancel the code in the context when its time is up; yield its timeout."""
        try:
            async with asyncio.timeout(None) as request:
                self.limit(request, seconds)
                try:
                    yield request
                finally:
                    del self._open[request]
        except TimeoutError:
            if not request.expired():
                raise


class StoppingMiddleware:
    """Makes requests end in time when the service stops.

    A server finishes all open requests before it exits, however long that takes. Here, streams of
    server-sent events end at once: they never end by themselves, and their clients connect again
    and send the last event that they received in `Last-Event-ID`. The server closes WebSockets with
    1012; an endpoint that does not receive, and so cannot notice, is cancelled soon after. All
    other requests have the time of `stopping`; then they are answered with 503, or cut off if the
    response has begun.
    """

    def __init__(self, app: ASGIApp, stopping: Stopping) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            await self._serve_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Message | None = None
        has_ended = False

        async def send_and_note(message: Message) -> None:
            nonlocal response, has_ended
            if message["type"] == "http.response.start":
                if self._stopping.has_begun:
                    message = with_close(message, scope)
                await send(message)
                response = message
                if begins_event_stream(response):
                    self._stopping.limit(request, 0)
            else:
                await send(message)
                has_ended = not message.get("more_body", False)

        def is_stream() -> bool:
            return response is not None and begins_event_stream(response)

        try:
            async with self._stopping.limited(self._stopping.timeout) as request:
                await self._app(scope, receive, send_and_note)
        except Exception as error:
            # FastAPI passes events through a pipe, which may break when the stream is cancelled or
            # the client leaves.
            if not (is_stream() and (request.expired() or is_broken_pipe(error))):
                raise
        if not request.expired():
            return
        if is_stream():
            if not has_ended:
                await send({"type": "http.response.body", "body": b""})
            return
        logger.warning(
            "Gave up %s %r, which went on for %d s after the service was told to stop",
            scope["method"], scope["path"], self._stopping.timeout,
        )  # fmt: skip
        if response is None:
            answer = problem(
                HTTPConnection(scope),
                status.HTTP_503_SERVICE_UNAVAILABLE,
                {"detail": "The service is stopping"},
                {"Retry-After": "1"},
            )
            await answer(scope, receive, send)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_note() -> Message:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._stopping.limit(socket, self._stopping.timeout)  # time for it to clean up
            return message

        async with self._stopping.limited(SOCKET_TIMEOUT) as socket:
            await self._app(scope, receive_and_note, send)


def begins_event_stream(message: Message) -> bool:
    """Return whether this message starts a stream of server-sent events."""
    content_type: bytes = dict(message.get("headers", ())).get(b"content-type", b"")
    return content_type.startswith(b"text/event-stream")


def is_broken_pipe(error: Exception) -> bool:
    """Return whether the only error is that a task sent to one that no longer receives."""
    return isinstance(error, ExceptionGroup) and error.split(BrokenResourceError)[1] is None


def with_close(message: Message, scope: Scope) -> Message:
    """Add `Connection: close` to a response, if the protocol is HTTP/1.

    This keeps the client from sending a request while the server closes the connection.
    """
    if not scope["http_version"].startswith("1"):
        return message
    return {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}


@contextmanager
def when_told_to_stop(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` on the event loop on SIGINT or SIGTERM, besides the server's own handler.

    The server ends the lifespan after it has answered all requests, which is too late. If nothing
    handles these signals, as in tests, nothing changes.
    """
    handlers: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():  # only this one can handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                handlers[number] = handler
    if not handlers:
        yield
        return
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        handlers[number](number, frame)

    for handled in handlers:
        signal.signal(handled, handle)
    try:
        yield
    finally:
        for handled, before in handlers.items():
            signal.signal(handled, before)
