"""What the endpoints of one item have in common."""

from typing import Annotated

from fastapi import Depends, HTTPException, Path, status

from app.core.database import SessionDep
from app.items.models import Item
from app.items.service import find_item
from app.users.dependencies import CurrentUser

ItemId = Annotated[int, Path(ge=1, le=2**31 - 1)]


async def get_owned_item(item_id: ItemId, session: SessionDep, user: CurrentUser) -> Item:
    """Return the user's item. Raises HTTPException 404, also for the items of others."""
    item = await find_item(session, user, item_id)
    if item is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "No such item")
    return item


OwnedItem = Annotated[Item, Depends(get_owned_item)]
