"""How many queries a request executes, and which plan the database chooses."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.items.models import Item, ItemStatus, Tag
from app.items.schemas import ItemQuery
from app.items.service import list_items
from app.users.models import User
from tests.harness.guard import listening
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
    assert len(queries) == 3, queries  # the user, the page, the tags


async def test_only_the_application_is_counted(
    owner_client: AsyncClient, db_session: AsyncSession, queries: list[str]
) -> None:
    assert queries == []  # though a fixture has stored the owner
    await owner_client.post("/items", json={"title": "Lamp"})
    count = len(queries)
    assert writes(queries) == ["INSERT", "INSERT"]  # the item and its event
    await db_session.scalars(select(Item))
    assert len(queries) == count


@pytest.mark.committed
async def test_the_count_is_the_same_with_real_commits(
    owner_client: AsyncClient, queries: list[str]
) -> None:
    await owner_client.post("/items", json={"title": "Lamp"})
    assert writes(queries) == ["INSERT", "INSERT"]


def writes(queries: list[str]) -> list[str]:
    """Return the first word of each query that writes."""
    kinds = [statement.split()[0] for statement in queries]
    return [kind for kind in kinds if kind != "SELECT"]


async def plan_of(session: AsyncSession, work: Callable[[], Awaitable[object]]) -> str:
    """Return the query plan of the first statement that `work` executes."""
    executed: list[tuple[str, Any]] = []

    def record(_: object, _cursor: object, statement: str, parameters: Any, *__: object) -> None:
        executed.append((statement, parameters))

    with listening(Engine, {"before_cursor_execute": record}):
        await work()
    connection = await session.connection()
    explain = {"sqlite": "EXPLAIN QUERY PLAN"}.get(connection.dialect.name, "EXPLAIN")
    statement, parameters = executed[0]
    plan = await connection.exec_driver_sql(f"{explain} {statement}", parameters)
    return "\n".join(str(row[-1]) for row in plan)


async def test_index_serves_each_page(
    db_session: AsyncSession, owner: User, stranger: User
) -> None:
    owners = [owner.id] + 9 * [stranger.id]
    items = [
        {"owner_id": owner_id, "title": "Lamp", "price": 0, "status": ItemStatus.OWNED}
        for owner_id in 100 * owners
    ]
    await db_session.execute(insert(Item), items)
    first = await list_items(db_session, owner, ItemQuery(limit=50))
    query = ItemQuery(limit=50, cursor=first.next_cursor)
    plan = await plan_of(db_session, lambda: list_items(db_session, owner, query))
    assert re.search(r"ix_items_owner_id_items_id.*owner_id.*\bid\)? ?>", plan, re.S), plan
    assert not re.search("sort|temp b-tree|scan on", plan, re.I), plan
