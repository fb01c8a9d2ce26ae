"""The live feed over WebSocket, in the test's event loop and transaction."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from time_machine import TimeMachineFixture

from app.items.feed import Feed
from app.settings import Settings
from app.users.models import User
from tests.conftest import MakeClient
from tests.http_client import (
    AsyncClient,
    AsyncWebSocketSession,
    WebSocketDisconnect,
    connect_websocket,
)
from tests.users.fixtures import ClientFor

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


async def receive_title(socket: AsyncWebSocketSession) -> tuple[str, str]:
    """Wait for the next event; return what happened, and the item's title."""
    with anyio.fail_after(2):
        event = await socket.receive_json()
    return event["kind"], event["item"]["title"]


async def receive_until_closed(socket: AsyncWebSocketSession) -> tuple[int, int]:
    """Return how many events came before the application closed the socket, and the code."""
    received = 0
    with anyio.fail_after(2):
        try:
            while await socket.receive_json():
                received += 1
        except WebSocketDisconnect as closed:
            return received, closed.code
    raise AssertionError("An empty event has come.")


async def test_what_happens_to_an_item_arrives_in_order(owner_client: AsyncClient) -> None:
    async with connect_websocket(owner_client, "/items/feed") as socket:
        item = (await owner_client.post("/items", json={"title": "Lamp"})).json()
        await owner_client.patch(f"/items/{item['id']}", json={"title": "Desk"})
        await owner_client.delete(f"/items/{item['id']}")
        received = [await receive_title(socket) for _ in range(3)]
    assert received == [("created", "Lamp"), ("changed", "Desk"), ("deleted", "Desk")]


async def test_what_was_refused_does_not_arrive(owner_client: AsyncClient) -> None:
    async with connect_websocket(owner_client, "/items/feed") as socket:
        await owner_client.post("/items", json={"title": ""})
        await owner_client.post("/items", json={"title": "Lamp"})
        assert await receive_title(socket) == ("created", "Lamp")


async def test_two_users_see_only_their_own(
    owner_client: AsyncClient, stranger_client: AsyncClient
) -> None:
    async with (
        connect_websocket(owner_client, "/items/feed") as owner_socket,
        connect_websocket(stranger_client, "/items/feed") as stranger_socket,
    ):
        await owner_client.post("/items", json={"title": "the owner's"})
        await stranger_client.post("/items", json={"title": "the stranger's"})
        assert await receive_title(owner_socket) == ("created", "the owner's")
        assert await receive_title(stranger_socket) == ("created", "the stranger's")


async def test_two_sockets_of_a_user_both_see_it(owner_client: AsyncClient) -> None:
    async with (
        connect_websocket(owner_client, "/items/feed") as phone,
        connect_websocket(owner_client, "/items/feed") as desk,
    ):
        await owner_client.post("/items", json={"title": "Lamp"})
        assert await receive_title(phone) == await receive_title(desk) == ("created", "Lamp")


async def test_what_a_client_says_is_passed_over(owner_client: AsyncClient) -> None:
    async with connect_websocket(owner_client, "/items/feed") as socket:
        await socket.send_text("hello?")
        await socket.send_bytes(b"\0")
        await owner_client.post("/items", json={"title": "Lamp"})
        assert await receive_title(socket) == ("created", "Lamp")


async def test_browser_sends_its_token_as_a_subprotocol(
    make_client: MakeClient, owner_client: AsyncClient
) -> None:
    token = owner_client.headers["Authorization"].removeprefix("Bearer ")
    browser = await make_client(headers={"Sec-WebSocket-Protocol": f"bearer, {token}"})
    async with connect_websocket(browser, "/items/feed") as socket:
        assert socket.subprotocol == "bearer"
        await owner_client.post("/items", json={"title": "Lamp"})
        assert await receive_title(socket) == ("created", "Lamp")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer forged"},
        {"Authorization": "Basic {token}"},
        {"Sec-WebSocket-Protocol": "bearer"},
        {"Sec-WebSocket-Protocol": "bearer, forged"},
        {"Sec-WebSocket-Protocol": "chat, {token}"},
    ],
)
async def test_without_a_good_token_it_closes_with_1008(
    make_client: MakeClient, owner_client: AsyncClient, headers: dict[str, str]
) -> None:
    token = owner_client.headers["Authorization"].removeprefix("Bearer ")
    client = await make_client(
        headers={name: value.format(token=token) for name, value in headers.items()}
    )
    with pytest.raises(WebSocketDisconnect) as refusal:
        async with connect_websocket(client, "/items/feed"):
            pytest.fail("The socket opened.")
    assert refusal.value.code == 1008


async def test_client_that_reads_slowly_misses_nothing(owner_client: AsyncClient) -> None:
    async with connect_websocket(owner_client, "/items/feed") as slow:
        async with connect_websocket(owner_client, "/items/feed") as fast:
            for title in "abc":
                await owner_client.post("/items", json={"title": title})
                assert await receive_title(fast) == ("created", title)
        assert [await receive_title(slow) for _ in "abc"] == [("created", each) for each in "abc"]


async def test_socket_closes_with_1008_when_its_token_expires(
    client_for: ClientFor, owner: User, settings: Settings, time_machine: TimeMachineFixture
) -> None:
    time_machine.move_to(NOON, tick=False)
    client = await client_for(owner)
    lifetime = timedelta(minutes=settings.access_token_minutes)
    time_machine.move_to(NOON + lifetime - timedelta(milliseconds=10), tick=False)
    async with connect_websocket(client, "/items/feed") as socket:
        assert await receive_until_closed(socket) == (0, 1008)


async def test_one_socket_too_many_is_closed_with_1013(
    feed: Feed, owner_client: AsyncClient, stranger_client: AsyncClient, owner: User
) -> None:
    async with AsyncExitStack() as streams:
        for _ in range(10):
            await streams.enter_async_context(feed.follow(owner.id, after=0))
        with pytest.raises(WebSocketDisconnect) as refusal:
            async with connect_websocket(owner_client, "/items/feed"):
                pytest.fail("The socket opened.")
        assert refusal.value.code == 1013
        async with connect_websocket(stranger_client, "/items/feed"):
            pass
    async with connect_websocket(owner_client, "/items/feed"):
        pass


async def test_client_that_goes_away_is_forgotten(
    feed: Feed, owner_client: AsyncClient, owner: User
) -> None:
    async with connect_websocket(owner_client, "/items/feed"):
        assert feed.count_followers(owner.id) == 1
    with anyio.fail_after(2):
        while feed.count_followers(owner.id):  # noqa: ASYNC110  (its task notifies nobody)
            await anyio.sleep(0.01)
