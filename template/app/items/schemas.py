"""The request and response bodies of the items' endpoints."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.json_schema import SkipJsonSchema

from app.core.pages import PageParams
from app.core.schemas import NO_NUL
from app.items.models import ItemEventKind, ItemStatus

Title = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
Description = Annotated[str, Field(max_length=2000, pattern=NO_NUL)]
Price = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]
# A string in JSON, so that no client rounds it: "9.50".
Amount = Annotated[Decimal, PlainSerializer(lambda amount: f"{amount:.2f}", return_type=str)]


class ItemTag(BaseModel):
    """A word to find an item by."""

    model_config = ConfigDict(from_attributes=True)

    name: Annotated[str, Field(min_length=1, max_length=50, pattern=NO_NUL)]


Tags = Annotated[list[ItemTag], Field(max_length=20)]


class ItemCreate(BaseModel):
    """A new item."""

    title: Title
    description: Description | None = None
    price: Price = Decimal(0)
    status: ItemStatus = ItemStatus.OWNED
    tags: Tags = []


class ItemUpdate(BaseModel):
    """The fields to change; the others stay as they are."""

    title: Title = ""  # may be left out, but not null
    description: Description | None = None
    price: Price = Decimal(0)
    status: ItemStatus = ItemStatus.OWNED
    tags: Tags = []


class ItemRead(BaseModel):
    """An item, as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    owner_id: int
    title: str
    description: str | None
    price: Amount
    status: ItemStatus
    tags: list[ItemTag]
    created_at: datetime


class ItemPage(BaseModel):
    """Some of a user's items, oldest first; `next_cursor` is null on the last page."""

    model_config = ConfigDict(from_attributes=True)

    items: list[ItemRead]
    next_cursor: str | None


class ItemQuery(PageParams):
    """Which items to list, and which page."""

    status: ItemStatus | SkipJsonSchema[None] = None
    max_price: Price | SkipJsonSchema[None] = None


EventId = Annotated[int, Field(ge=0, le=2**63 - 1)]


class ItemEventRead(BaseModel):
    """What happened to an item, and the item after it, or before it was deleted."""

    model_config = ConfigDict(from_attributes=True)

    id: EventId
    kind: ItemEventKind
    item: ItemRead
