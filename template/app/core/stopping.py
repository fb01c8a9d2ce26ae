"""What happens when the process is told to stop: endless streams end, and the rest is answered."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from anyio import CancelScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Handler = Callable[[int, FrameType | None], object]


class EventStreams:
    """The streams of server-sent events that are open."""

    def __init__(self) -> None:
        self._open: set[CancelScope] = set()
        self._is_stopping = False

    def add(self, stream: CancelScope) -> None:
        """Note that a stream has begun."""
        self._open.add(stream)
        if self._is_stopping:
            stream.cancel()

    def discard(self, stream: CancelScope) -> None:
        """Forget a stream that has ended, if it was one."""
        self._open.discard(stream)

    def stop(self) -> None:
        """End the streams that are open, and those that are still to begin."""
        self._is_stopping = True
        for stream in self._open:
            stream.cancel()


class EventStreamMiddleware:
    """Lets streams of server-sent events end when the service stops.

    A server answers what is in flight before it exits, but such a stream never ends by itself. Its
    client connects again, and says in `Last-Event-ID` what it has received.
    """

    def __init__(self, app: ASGIApp, streams: EventStreams) -> None:
        self._app = app
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_note(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start" and begins_event_stream(message):
                self._streams.add(request)

        with CancelScope() as request:
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                self._streams.discard(request)
        if request.cancelled_caught:
            await send({"type": "http.response.body", "body": b""})


def begins_event_stream(message: Message) -> bool:
    """Say whether a response that starts so is a stream of server-sent events."""
    content_type: bytes = dict(message["headers"]).get(b"content-type", b"")
    return content_type.startswith(b"text/event-stream")


@contextmanager
def when_told_to_stop(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` on the event loop when SIGINT or SIGTERM comes; then do what the server does.

    The server ends the lifespan after it has answered all requests, which is too late. Where nobody
    handles these signals, as in tests, nothing changes.
    """
    handlers: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():  # no other may handle signals
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
