"""Types for the endpoints of every feature: ids and texts."""

from typing import Annotated

from fastapi import Path
from pydantic import BeforeValidator

NO_NUL = r"^[^\x00]*$"
"""The pattern of texts that can be stored: PostgreSQL accepts no NUL."""


def check_digits(value: object) -> object:
    """Return an id as it came. Raises ValueError for a text with anything but digits.

    Pydantic also accepts `+2`, `1_000`, `2.0` and blanks: other URLs of the same resource.
    """
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("An id consists of digits.")
    return value


ResourceId = Annotated[int, Path(ge=1, le=2**31 - 1), BeforeValidator(check_digits)]
"""An id in a path, written in digits, that fits into an INTEGER column."""
