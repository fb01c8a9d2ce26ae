"""Cursor pagination returns every row once and in order, and refuses forged cursors."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import BigInteger, Float, Numeric, SmallInteger, String, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.database import SessionDep, UtcDateTime
from app.core.pages import Keyset, Page, PageParams
from tests.http_client import AsyncClient


class Color(StrEnum):
    RED = "red"


class PagesBase(DeclarativeBase):
    """Separate from the models of the service, so that migrations ignore the table."""


class Note(PagesBase):
    """A row with a column of each type that pages can be sorted by, and some that cannot."""

    __tablename__ = "core_test_pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    day: Mapped[date]
    number: Mapped[UUID]
    title: Mapped[str] = mapped_column(String(50))
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    short: Mapped[int] = mapped_column(SmallInteger)
    long: Mapped[int] = mapped_column(BigInteger)
    color: Mapped[Color] = mapped_column(default=Color.RED)
    weight: Mapped[float] = mapped_column(Float, default=0.0)
    parent: Mapped[int | None]


ORDERS = {
    "id": Keyset(Note.id),
    "id-desc": Keyset(Note.id, descending=True),
    "at": Keyset(Note.at, Note.id),
    "at-desc": Keyset(Note.at, Note.id, descending=True),
    "day": Keyset(Note.day, Note.id),
    "number": Keyset(Note.number, Note.id),
    "title": Keyset(Note.title, Note.id),
    "price": Keyset(Note.price, Note.id),
    "short": Keyset(Note.short, Note.long, Note.id),
    "long": Keyset(Note.long, Note.id),
}


class NoteRead(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int


class NotePage(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    items: list[NoteRead]
    next_cursor: str | None


def note(number: int) -> Note:
    """Make a note; notes 2n and 2n + 1 differ only in their id."""
    half = number // 2
    return Note(
        at=datetime(2026, 1, 1, microsecond=1, tzinfo=UTC) - timedelta(hours=half),
        day=date(2026, 1, 1) + timedelta(days=half % 2),
        number=UUID(int=2**127 - half),
        title=["b", "a", "ç"][half % 3],
        price=Decimal(half) / 100,
        short=-half,
        long=2**62 * (-1) ** half,
    )


@pytest.fixture
async def notes(app: FastAPI, db_session: AsyncSession) -> list[Note]:
    """Eight notes, and an endpoint that lists them in pages."""

    @app.get("/notes/{order}", response_model=NotePage)
    async def list_notes(
        order: str, params: Annotated[PageParams, Query()], session: SessionDep
    ) -> Page[Note]:
        return await ORDERS[order].page(session, select(Note), params)

    await (await db_session.connection()).run_sync(PagesBase.metadata.create_all)
    notes = [note(number) for number in range(8)]
    db_session.add_all(notes)
    await db_session.commit()
    return notes


async def walk(client: AsyncClient, order: str, limit: int) -> AsyncIterator[list[int]]:
    """Yield the ids on each page, from the first page to the last."""
    cursor: dict[str, str] = {}
    while True:
        response = await client.get(f"/notes/{order}", params={"limit": limit, **cursor})
        assert response.status_code == 200, response.text
        page = response.json()
        yield [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            return
        cursor["cursor"] = page["next_cursor"]


@pytest.mark.parametrize("order", ORDERS)
async def test_pages_have_each_row_once_and_in_order(
    notes: list[Note], client: AsyncClient, order: str
) -> None:
    [in_order] = [page async for page in walk(client, order, 200)]
    assert sorted(in_order) == [note.id for note in notes]
    for limit in (1, 3, 4, 8, 9):
        pages = [page async for page in walk(client, order, limit)]
        assert pages == [in_order[start : start + limit] for start in range(0, 8, limit)]


async def test_rows_are_sorted_by_the_columns(notes: list[Note], client: AsyncClient) -> None:
    [oldest] = [page async for page in walk(client, "at", 200)]
    assert oldest == [note.id for note in sorted(notes, key=lambda note: (note.at, note.id))]
    [newest] = [page async for page in walk(client, "at-desc", 200)]
    assert newest == oldest[::-1]


async def test_inserts_and_deletes_between_pages_skip_and_repeat_no_row(
    notes: list[Note], client: AsyncClient, db_session: AsyncSession
) -> None:
    pages = walk(client, "at", 3)
    seen = await anext(pages)
    gone = {seen[0], seen[-1], notes[0].id}  # before the cursor, at it, and after it
    stay = {note.id for note in notes} - gone
    await db_session.execute(delete(Note).where(Note.id.in_(gone)))
    db_session.add_all([note(100), earlier := note(0)])  # before the cursor, and after it
    await db_session.commit()
    seen += [row async for page in pages for row in page]
    assert sorted({*seen} - gone) == sorted({*stay, earlier.id})
    assert len(seen) == len({*seen})


async def test_page_takes_one_query(
    notes: list[Note], client: AsyncClient, queries: list[str]
) -> None:
    assert len([page async for page in walk(client, "at", 2)]) == len(queries) == 4
    assert "OFFSET" not in queries[-1].replace("OFFSET ?", "")


def test_limit_has_a_default() -> None:
    assert PageParams() == PageParams(limit=50, cursor=None)


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=-1", "limit=x", f"limit={2**63}", "page=1", "offset=1"),
        *("cursor=", "cursor=x", "cursor=%00", "cursor=%ED%A0%80", "cursor=ä", "cursor=bnVsbA=="),
        *(f"cursor={'e' * 4096}", f"cursor={'e' * 5000}"),
    ],
)
async def test_impossible_page_is_refused(
    notes: list[Note], client: AsyncClient, query: str
) -> None:
    assert (await client.get(f"/notes/id?{query}")).status_code == 422


async def cursor_of(client: AsyncClient, order: str) -> str:
    """Return a genuine cursor."""
    cursor: str = (await client.get(f"/notes/{order}?limit=1")).json()["next_cursor"]
    return cursor


def forge(cursor: str, *values: object) -> str:
    """Return the cursor with its values replaced."""
    name, *_ = json.loads(urlsafe_b64decode(cursor))
    return urlsafe_b64encode(json.dumps([name, *values]).encode()).decode()


@pytest.mark.parametrize("other", ["id-desc", "at", "long"])
async def test_cursor_of_another_order_is_refused(
    notes: list[Note], client: AsyncClient, other: str
) -> None:
    cursor = await cursor_of(client, other)
    assert (await client.get(f"/notes/{other}", params={"cursor": cursor})).status_code == 200
    response = await client.get("/notes/id", params={"cursor": cursor})
    assert response.status_code == 422
    [reason] = response.json()["detail"]
    assert (reason["loc"], reason["msg"]) == (["query", "cursor"], "Not a cursor of this list")


@pytest.mark.parametrize("changed", ["{}!", " {}", "{}\0", "{}{}", "{}A"])
async def test_cursor_that_was_changed_is_refused(
    notes: list[Note], client: AsyncClient, changed: str
) -> None:
    cursor = await cursor_of(client, "at")
    params = {"cursor": changed.format(cursor, cursor)}
    assert (await client.get("/notes/at", params=params)).status_code == 422


NEVER: list[object] = [None, True, [], {}, 1.5, float("nan"), float("inf"), 10**1000, "\ud800"]
FORGED: dict[str, list[Any]] = {
    "id": [*NEVER, "1", 2**31, -(2**31) - 1, 2**63],
    "short": [*NEVER, 2**15, -(2**15) - 1],
    "long": [*NEVER, 2**63, -(2**63) - 1],
    "title": [*NEVER[:-1], 1, "a\0b"],
    "price": [*NEVER[:4], "x", "NaN", "Infinity", "1e999999", "0.001", 10**10, "12345678901.00"],
    "at": [
        *(*NEVER, 1, "x", "2026-01-01T00:00:00", "2026-01-01T00:00:00+99:00"),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
    ],
    "day": [*NEVER, 1, "x", "0000-01-01", "10000-01-01"],
    "number": [*NEVER, 1, "x", "0" * 33],
}


@pytest.mark.parametrize("order", FORGED)
async def test_cursor_with_impossible_values_is_refused(
    notes: list[Note], client: AsyncClient, order: str
) -> None:
    row = () if order == "id" else (1, 1) if order == "short" else (1,)
    forged = [(value, *row) for value in FORGED[order]]
    cursor = await cursor_of(client, order)
    for values in [*forged, (*forged[0], 1), (1,) if row else (1, 1)]:
        params = {"cursor": forge(cursor, *values)}
        response = await client.get(f"/notes/{order}", params=params)
        assert response.status_code == 422, (values, response.text)


EXTREMES: dict[str, list[tuple[Any, ...]]] = {
    "id": [(2**31 - 1,), (-(2**31),)],
    "short": [(2**15 - 1, 2**63 - 1, 1), (-(2**15), -(2**63), 1)],
    "title": [("\U0001f600'\"\\", 1), ("e" * 2000, 1)],
    "price": [("9999999999.99", 1), ("-9999999999.99", 1)],
    "at": [("0002-01-01T23:59:00+23:59", 1), ("9998-12-30T23:59:59.999999-23:59", 1)],
    "day": [("0001-01-01", 1), ("9999-12-31", 1)],
    "number": [(str(UUID(int=2**128 - 1)), 1)],
}


@pytest.mark.parametrize("order", EXTREMES)
async def test_database_accepts_all_values_that_a_cursor_may_contain(
    notes: list[Note], client: AsyncClient, order: str
) -> None:
    cursor = await cursor_of(client, order)
    for values in EXTREMES[order]:
        params = {"cursor": forge(cursor, *values)}
        response = await client.get(f"/notes/{order}", params=params)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ([Note.at], "Note.at: add the primary key"),
        ([Note.color, Note.id], "Note.color: cannot page by a column of type Enum"),
        ([Note.weight, Note.id], "Note.weight: cannot page by a column of type Float"),
        ([Note.parent, Note.id], "Note.parent: .* may be NULL"),
    ],
)
def test_order_that_could_skip_rows_is_refused(columns: list[Any], reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        Keyset(*columns)
