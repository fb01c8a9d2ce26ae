"""What goes in and out of the items' endpoints."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.schemas import NO_NUL

Title = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
Description = Annotated[str, Field(max_length=2000, pattern=NO_NUL)]


class ItemCreate(BaseModel):
    """A new item."""

    title: Title
    description: Description | None = None


class ItemUpdate(BaseModel):
    """The fields to change; what is left out stays as it is."""

    title: Title = ""  # may be left out, but not null
    description: Description | None = None


class ItemRead(BaseModel):
    """An item, as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    owner_id: int
    title: str
    description: str | None
    created_at: datetime


class ItemPage(BaseModel):
    """Some of a user's items, oldest first, and how many there are in all."""

    model_config = ConfigDict(from_attributes=True)

    items: list[ItemRead]
    total: int


EventId = Annotated[int, Field(ge=0, le=2**63 - 1)]
ItemEventKind = Literal["created", "changed", "deleted"]


class ItemEvent(BaseModel):
    """What happened to an item; of a deleted one, how it was last."""

    id: EventId
    kind: ItemEventKind
    item: ItemRead
