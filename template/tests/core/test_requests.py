"""Each request has an id, and a line in the log."""

import asyncio
import logging
from typing import Any

import pytest
import structlog
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from opentelemetry import trace
from starlette.types import Message, Receive, Scope, Send

from app.core.requests import RequestMiddleware
from tests.conftest import MakeClient
from tests.http_client import AsyncClient

SPAN = trace.NonRecordingSpan(
    trace.SpanContext(trace_id=0xABC, span_id=1, is_remote=False, trace_flags=trace.TraceFlags(1))
)


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "app")


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the log's lines about requests."""
    names = ("method", "route", "status", "code", "disconnected")
    return [
        {name: getattr(record, name) for name in names if hasattr(record, name)}
        for record in caplog.records
        if record.name == "app.access"
    ]


@pytest.fixture(autouse=True)
def endpoints(app: FastAPI) -> None:
    """The endpoints that these tests call."""
    router = APIRouter(prefix="/things")

    @router.get("/{thing_id}")
    async def read_thing(thing_id: int, tasks: BackgroundTasks) -> dict[str, Any]:
        structlog.contextvars.bind_contextvars(thing_id=thing_id)
        tasks.add_task(logging.getLogger("app.things").info, "Later")
        return structlog.contextvars.get_contextvars()

    @router.get("/{thing_id}/broken")
    async def fail(thing_id: int) -> None:
        raise ZeroDivisionError

    @router.get("/{thing_id}/forbidden")
    async def refuse(thing_id: int) -> None:
        raise HTTPException(403, headers={"X-Request-ID": "of the endpoint"})

    app.include_router(router, prefix="/api")
    mounted = FastAPI()
    mounted.include_router(router)
    app.mount("/mounted", mounted)


@pytest.mark.parametrize("request_id", ["a", "01J9ZQ.x_y:z=+/-", "a" * 128])
async def test_id_of_the_client_is_kept(client: AsyncClient, request_id: str) -> None:
    response = await client.get("/api/things/1", headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] == request_id
    assert response.json() == {"request_id": request_id, "thing_id": 1}


@pytest.mark.parametrize("request_id", ["", "a" * 129, "a b", "a\tb", "ada@example.com", "é", '"'])
async def test_id_that_is_not_sane_is_replaced(client: AsyncClient, request_id: str) -> None:
    headers = {b"X-Request-ID": request_id.encode()}
    response = await client.get("/api/things/1", headers=headers)
    assert response.headers["X-Request-ID"] == response.json()["request_id"]
    assert len(response.json()["request_id"]) == 32


async def test_ids_differ_and_nothing_is_left_of_the_request_before(client: AsyncClient) -> None:
    # A server starts a pipelined request in the previous one's context.
    with structlog.contextvars.bound_contextvars(thing_id=0, left="over"):
        first, second = await asyncio.gather(*(client.get(f"/api/things/{n}") for n in (1, 2)))
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    assert second.json() == {"request_id": second.headers["X-Request-ID"], "thing_id": 2}


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01", {"trace_id": TRACE_ID}),
        (f"00-{TRACE_ID}", {}),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", {}),
    ],
)
async def test_lines_have_the_trace_of_the_caller(
    client: AsyncClient, traceparent: str, expected: dict[str, str]
) -> None:
    headers = {"traceparent": traceparent, "X-Request-ID": "a"}
    response = await client.get("/api/things/1", headers=headers)
    assert response.json() == {"request_id": "a", "thing_id": 1, **expected}


async def test_lines_have_the_trace_that_is_recorded(client: AsyncClient) -> None:
    with trace.use_span(SPAN):
        response = await client.get("/api/things/1")
    assert response.json()["trace_id"] == f"{0xABC:032x}"


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        ("/api/things/1?token=x", "/api/things/{thing_id}", 200),
        ("/mounted/things/1", "/mounted/things/{thing_id}", 200),
        ("/api/things/one", "/api/things/{thing_id}", 422),
        ("/api/things/1/forbidden", "/api/things/{thing_id}/forbidden", 403),
        ("/nowhere/1", None, 404),
    ],
)
async def test_each_request_has_a_line(
    client: AsyncClient, caplog: pytest.LogCaptureFixture, path: str, route: str, status: int
) -> None:
    response = await client.get(path)
    assert response.status_code == status
    assert lines_of(caplog) == [{"method": "GET", "route": route, "status": status}]
    assert caplog.records[0].name == "app.access"  # before the background tasks
    assert len(response.headers.get_list("X-Request-ID")) == 1


async def test_method_that_is_not_allowed_has_the_route(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.put("/api/things/1")
    assert lines_of(caplog) == [{"method": "PUT", "route": "/api/things/{thing_id}", "status": 405}]


async def test_error_has_the_id_in_the_response_and_in_the_line(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = await make_client(raise_app_exceptions=False)
    response = await client.get("/api/things/1/broken", headers={"X-Request-ID": "a"})
    assert (response.status_code, response.headers["X-Request-ID"]) == (500, "a")
    assert [line["status"] for line in lines_of(caplog)] == [500]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_are_quiet(
    client: AsyncClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    assert "X-Request-ID" in (await client.get(path)).headers
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    caplog.clear()
    caplog.set_level(logging.INFO, "app")
    await client.get(path)
    assert caplog.records == []
    await client.put(path)
    assert [record.levelname for record in caplog.records] == ["INFO"]


class Served:
    """An application that sends the messages that it is given, and receives one for each None."""

    def __init__(self, *messages: Message | None) -> None:
        self.messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self.messages:
            await (receive() if message is None else send(message))


async def serve(kind: str, app: Served, *received: Message) -> list[Message]:
    """Serve a request or a WebSocket, and return what was sent."""
    to_receive, sent = list(received), []

    async def receive() -> Message:
        return to_receive.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-request-id", b"a")]
    method = {"method": "GET"} if kind == "http" else {}
    await RequestMiddleware(app)({"type": kind, "headers": headers, **method}, receive, send)
    return sent


WEBSOCKET = {"method": "WEBSOCKET", "route": None}
ACCEPT, CLOSE = {"type": "websocket.accept"}, {"type": "websocket.close"}


@pytest.mark.parametrize(
    ("messages", "received", "expected"),
    [
        ([ACCEPT, CLOSE], [], {"status": 101, "code": 1000}),
        ([ACCEPT, {**CLOSE, "code": 4000}], [], {"status": 101, "code": 4000}),
        (
            [ACCEPT, None],
            [{"type": "websocket.disconnect", "code": 1005}],
            {"status": 101, "code": 1005},
        ),
        ([ACCEPT, None], [{"type": "websocket.receive"}], {"status": 101}),
        ([CLOSE], [], {"status": 403}),
        ([{"type": "websocket.http.response.start", "status": 401}], [], {"status": 401}),
        ([], [], {"status": None}),
    ],
)
async def test_websocket_has_a_line_when_it_is_over(
    anyio_backend: str,
    caplog: pytest.LogCaptureFixture,
    messages: list[Message | None],
    received: list[Message],
    expected: dict[str, int],
) -> None:
    sent = await serve("websocket", Served(*messages), *received)
    assert lines_of(caplog) == [{**WEBSOCKET, **expected}]
    assert not sent or sent[0] == CLOSE or sent[0]["headers"] == [(b"x-request-id", b"a")]


START = {"type": "http.response.start", "status": 200, "headers": []}
PART, GONE = {"type": "http.response.body", "more_body": True}, {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([None, START, PART], {"status": 200, "disconnected": True}),
        ([None], {"status": None, "disconnected": True}),
        ([START, {"type": "http.response.body"}, None], {"status": 200}),
        ([START, PART], {"status": 200}),
    ],
)
async def test_client_that_has_gone_is_named(
    anyio_backend: str,
    caplog: pytest.LogCaptureFixture,
    messages: list[Message | None],
    expected: dict[str, Any],
) -> None:
    await serve("http", Served(*messages), GONE)
    assert lines_of(caplog) == [{"method": "GET", "route": None, **expected}]


async def test_log_that_nobody_wants_is_not_written(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "app")
    await serve("http", Served(START, {"type": "http.response.body"}))
    assert caplog.records == []
