"""The items' endpoints: create, list, read, change, delete."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, status

from app.core.database import SessionDep
from app.items import service
from app.items.dependencies import OwnedItem
from app.items.models import Item
from app.items.schemas import ItemCreate, ItemPage, ItemRead, ItemUpdate, PageParams
from app.users.dependencies import CurrentUser

router = APIRouter(
    prefix="/items",
    tags=["items"],
    responses={status.HTTP_401_UNAUTHORIZED: {"description": "The access token is not valid"}},
)

NOT_FOUND: dict[int | str, dict[str, Any]] = {
    status.HTTP_404_NOT_FOUND: {"description": "No such item"}
}


@router.post("", status_code=status.HTTP_201_CREATED, response_model=ItemRead)
async def create_item(data: ItemCreate, session: SessionDep, user: CurrentUser) -> Item:
    """Create an item."""
    return await service.create_item(session, user, data)


@router.get("")
async def list_items(
    page: Annotated[PageParams, Query()], session: SessionDep, user: CurrentUser
) -> ItemPage:
    """List one's own items by page."""
    items, total = await service.list_items(session, user, page)
    return ItemPage(items=[ItemRead.model_validate(item) for item in items], total=total)


@router.get("/{item_id}", response_model=ItemRead, responses=NOT_FOUND)
async def read_item(item: OwnedItem) -> Item:
    """Read one of one's own items."""
    return item


@router.patch("/{item_id}", response_model=ItemRead, responses=NOT_FOUND)
async def change_item(data: ItemUpdate, item: OwnedItem, session: SessionDep) -> Item:
    """Change one of one's own items."""
    return await service.change_item(session, item, data)


@router.delete("/{item_id}", status_code=status.HTTP_204_NO_CONTENT, responses=NOT_FOUND)
async def delete_item(item: OwnedItem, session: SessionDep) -> None:
    """Delete one of one's own items."""
    await service.delete_item(session, item)
