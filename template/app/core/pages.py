"""Cursor (keyset) pagination: each page starts after the last row of the previous one.

Later pages are as fast as the first if an index has the columns of the filter, followed by those
of the sort order. Rows that are inserted or deleted between two pages do not make other rows
appear twice or get skipped.
"""

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from types import GenericAlias
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID
from zlib import crc32

from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    Enum,
    Integer,
    Numeric,
    Select,
    SmallInteger,
    String,
    Uuid,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.core.database import UtcDateTime
from app.core.schemas import NO_NUL

RowT = TypeVar("RowT")


class PageParams(BaseModel):
    """The query parameters of a list: the first `limit` rows, or those after `cursor`."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=200)
    cursor: Annotated[str, Field(max_length=4096)] | SkipJsonSchema[None] = None


@dataclass(frozen=True)
class Page(Generic[RowT]):
    """Some rows of a list, and the cursor of the next page, or None on the last page."""

    items: Sequence[RowT]
    next_cursor: str | None


class Keyset:
    """A sort order for pages: columns of one model, the primary key among them.

    ::

        NEWEST_FIRST = Keyset(Item.created_at, Item.id, descending=True)

        page = await NEWEST_FIRST.page(session, select(Item).where(...), params)

    A cursor contains the values of these columns, and clients can read them. It is not signed: a
    forged cursor only selects another position in the results of the query.
    """

    def __init__(self, *columns: InstrumentedAttribute[Any], descending: bool = False) -> None:
        kinds = [kind_of(column) for column in columns]
        if not {*columns[0].table.primary_key.columns.keys()} <= {each.name for each in columns}:
            raise TypeError(
                f"{columns[-1]}: add the primary key, so that the order of equal rows is defined"
            )
        self._columns = columns
        self._descending = descending
        self._order = [column.desc() if descending else column.asc() for column in columns]
        self._name = crc32(repr([str(each) for each in self._order]).encode())
        place: Any = GenericAlias(tuple, (int, *kinds))
        self._place: TypeAdapter[Any] = TypeAdapter(place)

    async def page(
        self, session: AsyncSession, query: Select[RowT], params: PageParams
    ) -> Page[RowT]:
        """Return a page of the results of `query`.

        Raises RequestValidationError if the cursor is malformed or is from another sort order.
        """
        if params.cursor is not None:
            query = query.where(self._after(params.cursor))
        # One more row shows whether there is a next page.
        query = query.order_by(*self._order).limit(params.limit + 1)
        found = (await session.scalars(query)).all()
        items = found[: params.limit]
        return Page(items, self._cursor_at(items[-1]) if len(found) > len(items) else None)

    def _cursor_at(self, row: object) -> str:
        values = (getattr(row, column.key) for column in self._columns)
        return urlsafe_b64encode(self._place.dump_json((self._name, *values))).decode()

    def _after(self, cursor: str) -> ColumnElement[bool]:
        try:
            place = b64decode(cursor, altchars=b"-_", validate=True)
            name, *values = self._place.validate_json(place, strict=True)
            if name != self._name:
                raise ValueError("the cursor of another order")
        except ValueError as error:
            reason = {
                "type": "cursor",
                "loc": ("query", "cursor"),
                "msg": "Not a cursor of this list",
            }
            raise RequestValidationError([reason]) from error
        columns = tuple_(*self._columns)
        after: ColumnElement[bool] = columns < values if self._descending else columns > values
        return after


def whole(bits: int) -> Any:
    """Return the type of signed integers with `bits` bits."""
    return Annotated[int, Field(ge=-(2**bits), lt=2**bits)]


# The values that a cursor may contain, by column type: only what both databases accept.
KINDS: dict[type[Any], Any] = {
    SmallInteger: whole(15),
    BigInteger: whole(63),
    Integer: whole(31),
    UtcDateTime: Annotated[
        AwareDatetime, Field(ge=datetime(2, 1, 1, tzinfo=UTC), lt=datetime(9999, 1, 1, tzinfo=UTC))
    ],
    Date: date,
    Uuid: UUID,
    Enum: None,  # each database sorts it differently
    String: Annotated[str, Field(pattern=NO_NUL)],
}


def kind_of(column: InstrumentedAttribute[Any]) -> Any:
    """Return the type of a column's values. Raises TypeError if pages cannot be sorted by it."""
    sql = column.type
    kind = next((kind for each, kind in KINDS.items() if isinstance(sql, each)), None)
    if isinstance(sql, Numeric) and sql.precision and sql.scale:
        kind = Annotated[Decimal, Field(max_digits=sql.precision, decimal_places=sql.scale)]
    if kind is None:
        raise TypeError(f"{column}: cannot page by a column of type {sql!r}")
    if column.nullable:
        raise TypeError(f"{column}: cannot page by a column that may be NULL")
    return kind
