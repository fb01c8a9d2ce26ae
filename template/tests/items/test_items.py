"""Owners create, list, read, change and delete their items."""

from datetime import UTC
from decimal import Decimal
from typing import Any

import pytest
from dirty_equals import IsNow, IsPositiveInt
from fastapi import FastAPI
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.items.models import Item, ItemStatus, Tag
from app.users.models import User
from tests.http_client import AsyncClient
from tests.items.factories import ItemFactory

ItemMaker = type[ItemFactory]

BAD_TITLES = [None, "", "x" * 201, "a\0b", 1]


async def test_creating_an_item_stores_it_for_its_owner(
    owner_client: AsyncClient, owner: User, db_session: AsyncSession
) -> None:
    response = await owner_client.post("/items", json={"title": "Lamp", "description": "green"})
    assert response.status_code == 201
    item = (await db_session.scalars(select(Item))).one()
    assert (item.owner_id, item.title, item.description) == (owner.id, "Lamp", "green")


async def test_created_item_comes_back_with_id_and_time(
    owner_client: AsyncClient, owner: User
) -> None:
    response = await owner_client.post("/items", json={"title": "Lamp"})
    assert response.json() == {
        "id": IsPositiveInt(),
        "owner_id": owner.id,
        "title": "Lamp",
        "description": None,
        "price": "0.00",
        "status": "owned",
        "tags": [],
        "created_at": IsNow(tz=UTC, iso_string=True, delta=5),
    }


@pytest.mark.parametrize("title", BAD_TITLES)
async def test_item_with_a_bad_title_is_refused(
    owner_client: AsyncClient, db_session: AsyncSession, title: object
) -> None:
    response = await owner_client.post("/items", json={"title": title})
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [["body", "title"]]
    assert await db_session.scalar(select(func.count()).select_from(Item)) == 0


async def test_item_without_a_title_is_refused(owner_client: AsyncClient) -> None:
    response = await owner_client.post("/items", json={})
    assert response.status_code == 422
    assert response.json()["errors"][0]["type"] == "missing"


@pytest.mark.parametrize("description", ["x" * 2001, "a\0b", 1])
async def test_item_with_a_bad_description_is_refused(
    owner_client: AsyncClient, description: object
) -> None:
    item = {"title": "Lamp", "description": description}
    assert (await owner_client.post("/items", json=item)).status_code == 422


PRICES = ["0.00", "0.10", "0.30", "19.99", "9999999999.99"]


@pytest.mark.parametrize("price", PRICES)
async def test_price_is_stored_and_shown_exactly(
    owner_client: AsyncClient, db_session: AsyncSession, price: str
) -> None:
    response = await owner_client.post("/items", json={"title": "Lamp", "price": price})
    assert response.json()["price"] == price
    assert await db_session.scalar(select(Item.price)) == Decimal(price)


async def test_prices_add_up(owner_client: AsyncClient, db_session: AsyncSession) -> None:
    for price in ("0.10", "0.20"):
        await owner_client.post("/items", json={"title": "Lamp", "price": price})
    assert await db_session.scalar(select(func.sum(Item.price))) == Decimal("0.30")


@pytest.mark.parametrize("price", ["-0.01", "0.001", "10000000000", "NaN", "1e999", None])
async def test_item_with_a_bad_price_is_refused(
    owner_client: AsyncClient, price: str | None
) -> None:
    response = await owner_client.post("/items", json={"title": "Lamp", "price": price})
    assert response.status_code == 422


@pytest.mark.parametrize("status", ["gone", "OWNED", None])
async def test_status_that_does_not_exist_is_refused(
    owner_client: AsyncClient, status: str | None
) -> None:
    response = await owner_client.post("/items", json={"title": "Lamp", "status": status})
    assert response.status_code == 422


async def test_status_that_does_not_exist_is_refused_by_the_database(
    owner: User, item_factory: ItemMaker, db_session: AsyncSession
) -> None:
    await item_factory.create_async(owner_id=owner.id)
    with pytest.raises(DBAPIError):
        await db_session.execute(text("UPDATE items SET status = 'gone'"))


async def test_tags_are_stored_once_each_and_shown_in_order(
    owner_client: AsyncClient, db_session: AsyncSession
) -> None:
    tags = [{"name": name} for name in ("old", "green", "old")]
    response = await owner_client.post("/items", json={"title": "Lamp", "tags": tags})
    assert response.json()["tags"] == [{"name": "green"}, {"name": "old"}]
    item = (await db_session.scalars(select(Item).options(selectinload(Item.tags)))).one()
    assert [tag.name for tag in item.tags] == ["green", "old"]


async def test_tags_are_loaded_with_the_query_or_not_at_all(
    owner: User, item_factory: ItemMaker, app: FastAPI
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, tags=[Tag(name="old")])
    async with app.state.session_factory() as session:
        loaded = await session.get_one(Item, item.id, options=[selectinload(Item.tags)])
        assert [tag.name for tag in loaded.tags] == ["old"]
    async with app.state.session_factory() as session:
        forgotten = await session.get_one(Item, item.id)
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            _ = forgotten.tags


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2]),
        ("status=for_sale", [1, 2]),
        ("max_price=10", [0, 1]),
        ("status=for_sale&max_price=9.50", [1]),
        ("status=sold", []),
    ],
)
async def test_list_can_be_filtered(
    owner_client: AsyncClient,
    owner: User,
    item_factory: ItemMaker,
    query: str,
    expected: list[int],
) -> None:
    items = [
        await item_factory.create_async(owner_id=owner.id, status=status, price=Decimal(price))
        for status, price in (
            (ItemStatus.OWNED, "1.00"),
            (ItemStatus.FOR_SALE, "9.50"),
            (ItemStatus.FOR_SALE, "9999999999.99"),
        )
    ]
    page = (await owner_client.get(f"/items?{query}")).json()
    assert [item["id"] for item in page["items"]] == [items[index].id for index in expected]


@pytest.mark.parametrize("query", ["status=gone", "max_price=-1", "max_price=cheap"])
async def test_impossible_filter_is_refused(owner_client: AsyncClient, query: str) -> None:
    assert (await owner_client.get(f"/items?{query}")).status_code == 422


async def test_list_has_one_s_own_items_only(
    owner_client: AsyncClient, owner: User, stranger: User, item_factory: ItemMaker
) -> None:
    mine = await item_factory.create_async(owner_id=owner.id)
    await item_factory.create_async(owner_id=stranger.id)
    page = (await owner_client.get("/items")).json()
    assert [item["id"] for item in page["items"]] == [mine.id]


async def test_list_of_nothing_is_empty(owner_client: AsyncClient) -> None:
    assert (await owner_client.get("/items")).json() == {"items": [], "next_cursor": None}


async def test_pages_are_in_order_of_creation(
    owner_client: AsyncClient, owner: User, item_factory: ItemMaker
) -> None:
    items = [await item_factory.create_async(owner_id=owner.id) for _ in range(5)]
    pages = []
    cursor: str | None = ""
    while cursor is not None:
        query = f"limit=2&cursor={cursor}" if cursor else "limit=2"
        page = (await owner_client.get(f"/items?{query}")).json()
        pages.append([item["id"] for item in page["items"]])
        cursor = page["next_cursor"]
    ids = [item.id for item in items]
    assert pages == [ids[:2], ids[2:4], ids[4:]]


async def test_filters_hold_on_the_next_page(
    owner_client: AsyncClient, owner: User, item_factory: ItemMaker
) -> None:
    for_sale, other = ItemStatus.FOR_SALE, ItemStatus.OWNED
    for status in (for_sale, other, for_sale, other):
        item = await item_factory.create_async(owner_id=owner.id, status=status)
    query = "/items?status=for_sale&limit=1"
    first = (await owner_client.get(query)).json()
    second = (await owner_client.get(f"{query}&cursor={first['next_cursor']}")).json()
    assert [item["id"] for item in second["items"]] == [item.id - 1]
    assert second["next_cursor"] is None


async def test_cursor_of_a_stranger_opens_one_s_own_list_only(
    owner_client: AsyncClient,
    stranger_client: AsyncClient,
    owner: User,
    stranger: User,
    item_factory: ItemMaker,
) -> None:
    for user in (stranger, owner, stranger, owner):
        await item_factory.create_async(owner_id=user.id)
    page = (await stranger_client.get("/items?limit=1")).json()
    response = await owner_client.get(f"/items?limit=1&cursor={page['next_cursor']}")
    assert {each["owner_id"] for each in response.json()["items"]} == {owner.id}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "page=1", "offset=1", "cursor=x", "cursor="]
)
async def test_impossible_page_is_refused(owner_client: AsyncClient, query: str) -> None:
    response = await owner_client.get(f"/items?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"][0] == "query"


async def test_item_can_be_read(
    owner_client: AsyncClient, owner: User, item_factory: ItemMaker
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, title="Lamp")
    response = await owner_client.get(f"/items/{item.id}")
    assert response.status_code == 200
    assert (response.json()["id"], response.json()["title"]) == (item.id, "Lamp")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"title": "Desk"}, ("Desk", "green")),
        ({"description": "red"}, ("Lamp", "red")),
        ({"description": None}, ("Lamp", None)),
        ({"title": "Desk", "description": "red"}, ("Desk", "red")),
        ({"price": "9.50", "status": "sold"}, ("Lamp", "green")),
        ({}, ("Lamp", "green")),
    ],
)
async def test_change_stores_what_is_given_and_keeps_the_rest(
    owner_client: AsyncClient,
    owner: User,
    item_factory: ItemMaker,
    change: dict[str, Any],
    expected: tuple[str, str | None],
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, title="Lamp", description="green")
    response = await owner_client.patch(f"/items/{item.id}", json=change)
    assert response.status_code == 200
    assert (response.json()["title"], response.json()["description"]) == expected
    assert (item.title, item.description) == expected  # reloaded after each request


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"tags": [{"name": "new"}]}, ["new"]), ({"tags": []}, []), ({}, ["old"])],
)
async def test_change_replaces_the_tags(
    owner_client: AsyncClient,
    owner: User,
    item_factory: ItemMaker,
    db_session: AsyncSession,
    change: dict[str, Any],
    expected: list[str],
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, tags=[Tag(name="old")])
    response = await owner_client.patch(f"/items/{item.id}", json=change)
    assert [tag["name"] for tag in response.json()["tags"]] == expected
    assert list(await db_session.scalars(select(Tag.name))) == expected


@pytest.mark.parametrize("title", BAD_TITLES)
async def test_change_to_a_bad_title_is_refused(
    owner_client: AsyncClient, owner: User, item_factory: ItemMaker, title: object
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, title="Lamp")
    response = await owner_client.patch(f"/items/{item.id}", json={"title": title})
    assert response.status_code == 422
    assert item.title == "Lamp"


async def test_deleted_item_is_gone_and_the_others_stay(
    owner_client: AsyncClient, owner: User, item_factory: ItemMaker, db_session: AsyncSession
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, tags=[Tag(name="old")])
    other = await item_factory.create_async(owner_id=owner.id)
    response = await owner_client.delete(f"/items/{item.id}")
    assert (response.status_code, response.content) == (204, b"")
    assert list(await db_session.scalars(select(Item.id))) == [other.id]
    assert (await owner_client.get(f"/items/{item.id}")).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_items_of_others_do_not_exist(
    stranger_client: AsyncClient, owner: User, item_factory: ItemMaker, method: str
) -> None:
    item = await item_factory.create_async(owner_id=owner.id, title="Lamp")
    body = {"title": "Mine"} if method == "PATCH" else None
    response = await stranger_client.request(method, f"/items/{item.id}", json=body)
    assert response.status_code == 404
    assert response.json() == {
        "type": "urn:problem-type:item-not-found",
        "title": "No such item",
        "status": 404,
        "instance": f"/items/{item.id}",
        "request_id": response.headers["X-Request-ID"],
    }
    assert item.title == "Lamp"


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("item_id", ["0", "-1", "2147483648", "lamp"])
async def test_id_that_no_item_can_have_is_refused(
    owner_client: AsyncClient, method: str, item_id: str
) -> None:
    body: dict[str, str] | None = {} if method == "PATCH" else None
    response = await owner_client.request(method, f"/items/{item_id}", json=body)
    assert response.status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/items"),
        ("GET", "/items"),
        ("GET", "/items/feed"),
        ("GET", "/items/1"),
        ("PATCH", "/items/1"),
        ("DELETE", "/items/1"),
    ],
)
async def test_without_a_token_nothing_is_to_be_had(
    client: AsyncClient, method: str, path: str
) -> None:
    body = {"title": "Lamp"} if method in {"POST", "PATCH"} else None
    response = await client.request(method, path, json=body)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
