"""How often the database is asked: as often for many items as for one."""

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.items.models import Item, Tag
from app.users.models import User
from tests.http_client import AsyncClient
from tests.items.factories import ItemFactory


@pytest.mark.parametrize("length", [1, 20])
async def test_list_asks_as_often_for_many_as_for_one(
    owner_client: AsyncClient,
    owner: User,
    item_factory: type[ItemFactory],
    queries: list[str],
    length: int,
) -> None:
    for _ in range(length):
        await item_factory.create_async(owner_id=owner.id, tags=[Tag(name="old"), Tag(name="red")])
    response = await owner_client.get("/items")
    assert len(response.json()["items"]) == length
    assert len(queries) == 4, queries  # the user, the total, the page, the tags


async def test_only_the_application_is_counted(
    owner_client: AsyncClient, db_session: AsyncSession, queries: list[str]
) -> None:
    assert queries == []  # though the owner has been stored
    await owner_client.post("/items", json={"title": "Lamp"})
    kinds = [statement.split()[0] for statement in queries]
    assert kinds == ["SELECT", "INSERT"]
    await db_session.scalars(select(Item))
    assert len(queries) == 2


@pytest.mark.committed
async def test_the_count_is_the_same_with_real_commits(
    owner_client: AsyncClient, queries: list[str]
) -> None:
    await owner_client.post("/items", json={"title": "Lamp"})
    assert [statement.split()[0] for statement in queries] == ["SELECT", "INSERT"]
