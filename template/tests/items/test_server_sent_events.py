"""The live feed as server-sent events: over ASGI if the stream ends, otherwise over a socket."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from time_machine import TimeMachineFixture

from app.items.feed import Feed
from app.items.schemas import ItemRead
from app.settings import Settings
from app.users.models import User
from tests.http_client import AsyncClient, Response
from tests.users.fixtures import ClientFor

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def live_client(live_server: str, owner_client: AsyncClient) -> AsyncClient:
    """The owner's client over a socket, for the test to open and close."""
    authorization = owner_client.headers["Authorization"]
    return AsyncClient(base_url=live_server, headers={"Authorization": authorization})


async def events_of(response: Response) -> AsyncIterator[dict[str, str]]:
    """Parse a stream of server-sent events, as they come."""
    event: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name:  # a comment has none
            event[name] = value
        elif event and not line:
            yield event
            event = {}


async def test_finite_stream_tells_what_happened_and_ends(owner_client: AsyncClient) -> None:
    item = (await owner_client.post("/items", json={"title": "Lamp"})).json()
    await owner_client.delete(f"/items/{item['id']}")
    response = await owner_client.get("/items/feed?follow=false")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    created, deleted = [event async for event in events_of(response)]
    assert (created["event"], deleted["event"]) == ("created", "deleted")
    assert ItemRead.model_validate_json(created["data"]) == ItemRead.model_validate(item)


async def test_client_that_connects_again_gets_what_it_missed(owner_client: AsyncClient) -> None:
    for title in ("one", "two", "three"):
        await owner_client.post("/items", json={"title": title})
    response = await owner_client.get("/items/feed?follow=false")
    seen = [event async for event in events_of(response)]
    response = await owner_client.get(
        "/items/feed?follow=false", headers={"Last-Event-ID": seen[0]["id"]}
    )
    assert [event async for event in events_of(response)] == seen[1:]


async def test_stream_has_one_s_own_items_only(
    owner_client: AsyncClient, stranger_client: AsyncClient
) -> None:
    await stranger_client.post("/items", json={"title": "the stranger's"})
    assert (await owner_client.get("/items/feed?follow=false")).text == ""


@pytest.mark.parametrize("last_event_id", ["x", "-1", str(2**63)])
async def test_impossible_last_event_id_is_refused(
    owner_client: AsyncClient, last_event_id: str
) -> None:
    response = await owner_client.get("/items/feed", headers={"Last-Event-ID": last_event_id})
    assert response.status_code == 422


async def test_endless_stream_over_asgi_needs_a_deadline_of_the_test_s_own(
    feed: Feed, owner_client: AsyncClient, owner: User
) -> None:
    # The transport returns a response when it is complete, and ignores `timeout`.
    with anyio.move_on_after(0.2) as deadline:
        await owner_client.get("/items/feed", timeout=0.01)
    assert deadline.cancelled_caught
    assert feed.count_followers(owner.id) == 0


async def test_endless_stream_sends_each_event_when_it_happens(
    live_client: AsyncClient, owner_client: AsyncClient
) -> None:
    async with live_client, live_client.stream("GET", "/items/feed") as response:
        events = events_of(response)
        for title in ("Lamp", "Desk"):
            await owner_client.post("/items", json={"title": title})
            with anyio.fail_after(5):
                event = await anext(events)
            assert ItemRead.model_validate_json(event["data"]).title == title


async def test_endless_stream_begins_with_what_was_missed(
    live_client: AsyncClient, owner_client: AsyncClient
) -> None:
    await owner_client.post("/items", json={"title": "missed"})
    headers = {"Last-Event-ID": "0"}
    async with live_client, live_client.stream("GET", "/items/feed", headers=headers) as response:
        with anyio.fail_after(5):
            assert "missed" in (await anext(events_of(response)))["data"]


async def test_stream_ends_when_its_token_expires(
    client_for: ClientFor, owner: User, settings: Settings, time_machine: TimeMachineFixture
) -> None:
    time_machine.move_to(NOON, tick=False)
    client = await client_for(owner)
    lifetime = timedelta(minutes=settings.access_token_minutes)
    time_machine.move_to(NOON + lifetime - timedelta(milliseconds=10), tick=False)
    with anyio.fail_after(5):
        response = await client.get("/items/feed")
    assert (response.status_code, response.text) == (200, "")


async def test_one_stream_too_many_is_refused(
    feed: Feed, owner_client: AsyncClient, stranger_client: AsyncClient, owner: User
) -> None:
    async with AsyncExitStack() as streams:
        for _ in range(10):
            await streams.enter_async_context(feed.follow(owner.id, after=0))
        response = await owner_client.get("/items/feed?follow=false")
        assert response.status_code == 429
        assert response.json()["type"] == "urn:problem-type:too-many-streams"
        assert (await stranger_client.get("/items/feed?follow=false")).status_code == 200
    assert (await owner_client.get("/items/feed?follow=false")).status_code == 200


async def test_client_that_goes_away_is_forgotten(
    feed: Feed, live_client: AsyncClient, owner: User
) -> None:
    async with live_client:
        async with live_client.stream("GET", "/items/feed"):
            assert feed.count_followers(owner.id) == 1
        with anyio.fail_after(5):
            while feed.count_followers(owner.id):  # noqa: ASYNC110  (the server notifies nobody)
                await anyio.sleep(0.01)


async def test_client_that_reads_slowly_misses_nothing(
    live_client: AsyncClient, owner_client: AsyncClient
) -> None:
    titles = [str(number) for number in range(10)]
    async with live_client, live_client.stream("GET", "/items/feed") as response:
        for title in titles:
            await owner_client.post("/items", json={"title": title})
        events = events_of(response)
        with anyio.fail_after(5):
            received = [ItemRead.model_validate_json((await anext(events))["data"]) for _ in titles]
    assert [item.title for item in received] == titles


async def test_position_of_another_database_is_passed_over(
    live_client: AsyncClient, owner_client: AsyncClient
) -> None:
    headers = {"Last-Event-ID": str(2**63 - 1)}
    async with live_client, live_client.stream("GET", "/items/feed", headers=headers) as response:
        await owner_client.post("/items", json={"title": "Lamp"})
        with anyio.fail_after(5):
            assert "Lamp" in (await anext(events_of(response)))["data"]
