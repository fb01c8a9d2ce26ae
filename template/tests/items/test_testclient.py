"""Starlette's synchronous client next to the async suite, with its own event loop.

It is for sync code, such as a script or a doctest. In an async test, it would block the event
loop. The tests' engine, session and transaction belong to their loop, so it has its own database,
which `db_session` does not see, and no rollback. Everywhere else, use `client`.
"""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

NEW_USER = {"email": "ada@example.com", "password": "correct horse battery"}


@pytest.fixture
def sync_client(standalone_app: FastAPI) -> Iterator[TestClient]:
    """A client that runs the application in its own thread, with its lifespan, and is logged in."""
    with TestClient(standalone_app) as client:
        client.post("/users", json=NEW_USER)
        login = {"username": NEW_USER["email"], "password": NEW_USER["password"]}
        token = client.post("/token", data=login).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def test_requests_without_await(sync_client: TestClient) -> None:
    created = sync_client.post("/items", json={"title": "Lamp"})
    assert created.status_code == 201
    assert sync_client.get("/items").json() == {"items": [created.json()], "next_cursor": None}


def test_websocket_without_await(sync_client: TestClient) -> None:
    with sync_client.websocket_connect("/items/feed") as socket:
        sync_client.post("/items", json={"title": "Lamp"})
        assert socket.receive_json()["item"]["title"] == "Lamp"


def test_refused_websocket(standalone_app: FastAPI) -> None:
    with (
        TestClient(standalone_app) as client,
        pytest.raises(WebSocketDisconnect) as refusal,
        client.websocket_connect("/items/feed"),
    ):
        pytest.fail("The socket opened.")
    assert refusal.value.code == 1008
