"""The operations on items. They notify followers of each change when it is committed."""

from collections.abc import Sequence

from fastapi import status
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.core.pages import Keyset, Page
from app.core.problems import ProblemError
from app.items.feed import Feed
from app.items.models import Item, Tag
from app.items.schemas import ItemCreate, ItemQuery, ItemRead, ItemTag, ItemUpdate
from app.users.models import User

OLDEST_FIRST = Keyset(Item.id)


class ItemNotFoundError(ProblemError):
    """The user has no such item, though others may."""

    status_code = status.HTTP_404_NOT_FOUND
    type = "urn:problem-type:item-not-found"
    title = "No such item"


def tags_of(data: Sequence[ItemTag]) -> list[Tag]:
    """Make the tags of an item, without duplicates."""
    return [Tag(name=name) for name in sorted({tag.name for tag in data})]


async def create_item(session: AsyncSession, feed: Feed, owner: User, data: ItemCreate) -> Item:
    """Store a new item of `owner`."""
    fields = data.model_dump(exclude={"tags"})
    item = Item(owner_id=owner.id, tags=tags_of(data.tags), **fields)
    session.add(item)
    await session.flush()
    await feed.publish(session, "created", ItemRead.model_validate(item))
    await session.commit()
    return item


async def list_items(session: AsyncSession, owner: User, query: ItemQuery) -> Page[Item]:
    """Return one page of the items of `owner` that match `query`, oldest first."""
    wanted = select(Item).where(Item.owner_id == owner.id).options(selectinload(Item.tags))
    if query.status is not None:
        wanted = wanted.where(Item.status == query.status)
    if query.max_price is not None:
        wanted = wanted.where(Item.price <= query.max_price)
    return await OLDEST_FIRST.page(session, wanted, query)


async def get_item(session: AsyncSession, owner: User, item_id: int, *, lock: bool = False) -> Item:
    """Return the item of `owner`. Raises ItemNotFoundError.

    With `lock`, nobody else can change or delete it before the session's transaction ends.
    """
    query = select(Item).where(Item.id == item_id, Item.owner_id == owner.id)
    query = query.options(selectinload(Item.tags))
    item = await session.scalar(query.with_for_update() if lock else query)
    if item is None:
        raise ItemNotFoundError
    return item


async def change_item(session: AsyncSession, feed: Feed, item: Item, data: ItemUpdate) -> Item:
    """Change the fields that are set in `data`."""
    for name, value in data.model_dump(exclude_unset=True, exclude={"tags"}).items():
        setattr(item, name, value)
    if "tags" in data.model_fields_set:
        item.tags = tags_of(data.tags)
    await feed.publish(session, "changed", ItemRead.model_validate(item))
    await session.commit()
    return item


async def delete_item(session: AsyncSession, feed: Feed, item: Item) -> None:
    """Delete the item."""
    await session.delete(item)
    await feed.publish(session, "deleted", ItemRead.model_validate(item))
    await session.commit()
