"""What can be done with items. What was done is published once it is committed."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.schemas import PageParams
from app.items.feed import Feed
from app.items.models import Item
from app.items.schemas import ItemCreate, ItemRead, ItemUpdate
from app.users.models import User


async def create_item(session: AsyncSession, feed: Feed, owner: User, data: ItemCreate) -> Item:
    """Store a new item of `owner`."""
    item = Item(owner_id=owner.id, **data.model_dump())
    session.add(item)
    await session.commit()
    feed.publish("created", ItemRead.model_validate(item))
    return item


async def list_items(
    session: AsyncSession, owner: User, page: PageParams
) -> tuple[Sequence[Item], int]:
    """Return one page of the items of `owner`, oldest first, and the number of all."""
    owned = select(Item).where(Item.owner_id == owner.id)
    total = await session.scalar(select(func.count()).select_from(owned.subquery()))
    items = await session.scalars(owned.order_by(Item.id).limit(page.limit).offset(page.offset))
    return items.all(), total or 0


async def find_item(
    session: AsyncSession, owner: User, item_id: int, *, lock: bool = False
) -> Item | None:
    """Return the item if it is one of `owner`, else None.

    With `lock`, nobody else changes or deletes it before the session's transaction ends.
    """
    query = select(Item).where(Item.id == item_id, Item.owner_id == owner.id)
    return await session.scalar(query.with_for_update() if lock else query)


async def change_item(session: AsyncSession, feed: Feed, item: Item, data: ItemUpdate) -> Item:
    """Change the fields that `data` was given."""
    for name, value in data.model_dump(exclude_unset=True).items():
        setattr(item, name, value)
    await session.commit()
    feed.publish("changed", ItemRead.model_validate(item))
    return item


async def delete_item(session: AsyncSession, feed: Feed, item: Item) -> None:
    """Delete the item."""
    last = ItemRead.model_validate(item)
    await session.delete(item)
    await session.commit()
    feed.publish("deleted", last)
