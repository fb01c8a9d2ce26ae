"""What goes into the endpoints of every feature: ids, pages, texts."""

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

NO_NUL = r"^[^\x00]*$"
"""The pattern of texts that can be stored: PostgreSQL takes no NUL."""

ResourceId = Annotated[int, Path(ge=1, le=2**31 - 1)]
"""An id in a path: one that an INTEGER can hold."""


class PageParams(BaseModel):
    """Which part of a list: `limit` rows after the first `offset`."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=200)
    offset: int = Field(default=0, ge=0, le=2**31 - 1)
