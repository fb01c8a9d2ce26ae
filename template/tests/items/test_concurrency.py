"""Several requests at once, some of which are cancelled."""

import asyncio

import anyio
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.items.feed import Feed
from app.items.models import Item
from app.users.models import User
from tests.http_client import AsyncClient, connect_websocket
from tests.items.factories import ItemFactory


async def test_gathered_requests_are_all_served(
    owner_client: AsyncClient, db_session: AsyncSession
) -> None:
    titles = {f"item {number}" for number in range(10)}
    responses = await asyncio.gather(
        *(owner_client.post("/items", json={"title": title}) for title in titles)
    )
    assert {response.status_code for response in responses} == {201}
    assert set(await db_session.scalars(select(Item.title))) == titles


async def test_requests_of_a_task_group_stay_with_their_users(
    owner_client: AsyncClient,
    stranger_client: AsyncClient,
    owner: User,
    stranger: User,
    db_session: AsyncSession,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(owner_client.post("/items", json={"title": "Lamp"}))
            tasks.create_task(stranger_client.post("/items", json={"title": "Lamp"}))
    per_user = select(Item.owner_id, func.count()).group_by(Item.owner_id)
    counts = {tuple(row) for row in await db_session.execute(per_user)}
    assert counts == {(owner.id, 3), (stranger.id, 3)}


async def test_request_given_up_before_its_turn_leaves_nothing(
    owner_client: AsyncClient, db_session: AsyncSession
) -> None:
    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(owner_client.post("/items", json={"title": "served"}))
        given_up = tasks.create_task(owner_client.post("/items", json={"title": "given up"}))
        await asyncio.sleep(0)
        given_up.cancel()
    assert served.result().status_code == 201
    assert given_up.cancelled()
    assert list(await db_session.scalars(select(Item.title))) == ["served"]


@pytest.mark.committed
async def test_item_deleted_twice_at_once_is_deleted_once(
    feed: Feed, owner_client: AsyncClient, owner: User, item_factory: type[ItemFactory]
) -> None:
    item = await item_factory.create_async(owner_id=owner.id)
    responses = await asyncio.gather(*(owner_client.delete(f"/items/{item.id}") for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [204, 404, 404, 404, 404]
    assert [event.kind async for event in feed.events(owner.id)] == ["deleted"]


@pytest.mark.committed
async def test_item_changed_and_deleted_at_once_is_gone(
    owner_client: AsyncClient,
    owner: User,
    item_factory: type[ItemFactory],
) -> None:
    item = await item_factory.create_async(owner_id=owner.id)
    change, deletion = await asyncio.gather(
        owner_client.patch(f"/items/{item.id}", json={"title": "Desk"}),
        owner_client.delete(f"/items/{item.id}"),
    )
    assert change.status_code in {200, 404}
    assert deletion.status_code == 204
    assert (await owner_client.get(f"/items/{item.id}")).status_code == 404


@pytest.mark.committed
async def test_follower_hears_of_requests_that_are_served_at_once(
    owner_client: AsyncClient,
) -> None:
    async with connect_websocket(owner_client, "/items/feed") as socket:
        async with asyncio.TaskGroup() as tasks:
            for title in ("Lamp", "Desk"):
                tasks.create_task(owner_client.post("/items", json={"title": title}))
        with anyio.fail_after(5):
            events = [await socket.receive_json() for _ in range(2)]
    assert {event["item"]["title"] for event in events} == {"Lamp", "Desk"}
