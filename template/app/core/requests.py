"""Log each request: one line when it ends, and its id in all its lines."""

import logging
import re
from time import perf_counter
from typing import Any
from uuid import uuid4

from fastapi import status
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

HEADER = b"x-request-id"
# The ids that clients may send: without characters that mean something in logs or elsewhere.
SANE_ID = re.compile(rb"[A-Za-z0-9_.:=+/-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
# The messages that begin a response, with the status of those that contain none.
BEGINNINGS = {
    "http.response.start": None,
    "websocket.accept": status.HTTP_101_SWITCHING_PROTOCOLS,
    "websocket.http.response.start": None,
}
PROBES = {"/livez", "/readyz"}

logger = logging.getLogger("app.access")


class RequestMiddleware:
    """Gives each request an id, `scope["request_id"]`, and logs one line when it ends.

    The id is the client's `X-Request-ID` or a new one. It is in the same header of the response,
    and in all log lines of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, unless the parent application already does."""
        if scope["type"] == "lifespan" or "request_id" in scope:
            await self._app(scope, receive, send)
            return
        scope["request_id"], trace_id = identify(scope)
        # Not cleared afterwards: the server logs the application's exceptions in the same task.
        clear_contextvars()
        bind_contextvars(request_id=scope["request_id"], **trace_id)
        exchange = Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.end()


def identify(scope: Scope) -> tuple[str, dict[str, str]]:
    """Return the id of a request, and the id of its trace, if it has one."""
    request_id, parent = b"", b""
    for name, value in scope["headers"]:
        if name == HEADER:
            request_id = value
        elif name == b"traceparent":
            parent = value
    sane_id = request_id.decode() if SANE_ID.fullmatch(request_id) else uuid4().hex
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        return sane_id, {"trace_id": trace.format_trace_id(span.trace_id)}
    if traced := TRACEPARENT.fullmatch(parent):
        return sane_id, {"trace_id": traced[1].decode()}
    return sane_id, {}


class Exchange:
    """The messages of a request or a WebSocket, in both directions."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = perf_counter()
        self._is_over = False
        self._outcome: dict[str, Any] = {"status": None}

    async def receive(self) -> Message:
        """Receive a message; note whether the client has disconnected."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if not self._is_over:
                self._outcome["disconnected"] = True
        elif message["type"] == "websocket.disconnect":
            self._outcome["code"] = message.get("code")
        return message

    async def send(self, message: Message) -> None:
        """Send a message with the id of the request; note the status and the end."""
        kind = message["type"]
        if kind in BEGINNINGS:
            self._outcome["status"] = message.get("status", BEGINNINGS[kind])
            message = self._with_id(message)
        elif kind == "websocket.close":
            if self._outcome["status"] is None:
                self._outcome["status"] = status.HTTP_403_FORBIDDEN  # which servers then send
            else:
                self._outcome["code"] = message.get("code", status.WS_1000_NORMAL_CLOSURE)
        await self._send(message)
        if kind == "http.response.body" and not message.get("more_body"):
            self.end()

    def _with_id(self, message: Message) -> Message:
        headers = message.get("headers") or ()
        if any(name == HEADER for name, _ in headers):
            return message
        return {**message, "headers": [*headers, (HEADER, self._scope["request_id"].encode())]}

    def end(self) -> None:
        """Log the line, once."""
        if self._is_over:
            return
        self._is_over = True
        route = route_of(self._scope)
        is_quiet = route in PROBES and self._outcome["status"] == status.HTTP_200_OK
        level = logging.DEBUG if is_quiet else logging.INFO
        if not logger.isEnabledFor(level):
            return
        line = {
            "method": self._scope.get("method", "WEBSOCKET"),
            "route": route,
            **self._outcome,
            "duration_ms": round((perf_counter() - self._started) * 1000, 2),
        }
        logger.log(level, "request", extra=line)


def route_of(scope: Scope) -> str | None:
    """Return the path template of the route for a request, such as `/things/{thing_id}`."""
    # Only FastAPI's private context has the prefix of include_router.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    path: str | None = getattr(route, "path_format", None)
    mounted_at: str = scope.get("root_path", "").removeprefix(scope.get("app_root_path", ""))
    return None if path is None else mounted_at + path
