"""Types for the endpoints of every feature: ids and texts."""

from typing import Annotated

from fastapi import Path

NO_NUL = r"^[^\x00]*$"
"""The pattern of texts that can be stored: PostgreSQL accepts no NUL."""

ResourceId = Annotated[int, Path(ge=1, le=2**31 - 1)]
"""An id in a path that fits into an INTEGER column."""
