"""Ids, pages and texts: what no database can take is refused before it is asked."""

from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from pydantic import BaseModel, Field

from app.core.schemas import NO_NUL, PageParams, ResourceId
from tests.http_client import AsyncClient


class Note(BaseModel):
    text: Annotated[str, Field(pattern=NO_NUL)]


@pytest.fixture(autouse=True)
def endpoints(app: FastAPI) -> None:
    """Endpoints that return what they were given."""

    @app.get("/notes/{note_id}")
    async def read_note(note_id: ResourceId) -> int:
        return note_id

    @app.get("/notes")
    async def list_notes(page: Annotated[PageParams, Query()]) -> PageParams:
        return page

    @app.post("/notes")
    async def take_note(note: Note) -> Note:
        return note


@pytest.mark.parametrize("note_id", ["0", "-1", "2147483648", "first"])
async def test_id_that_no_row_can_have_is_refused(client: AsyncClient, note_id: str) -> None:
    assert (await client.get(f"/notes/{note_id}")).status_code == 422


async def test_greatest_id_is_taken(client: AsyncClient) -> None:
    assert (await client.get(f"/notes/{2**31 - 1}")).json() == 2147483647


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "offset=-1", "offset=9999999999", "limit=x", "page=1"]
)
async def test_impossible_page_is_refused(client: AsyncClient, query: str) -> None:
    assert (await client.get(f"/notes?{query}")).status_code == 422


async def test_first_page_is_the_default(client: AsyncClient) -> None:
    assert (await client.get("/notes")).json() == {"limit": 50, "offset": 0}


@pytest.mark.parametrize(("text", "status"), [("a\0b", 422), ("a\nb", 200), ("", 200)])
async def test_text_holds_no_nul(client: AsyncClient, text: str, status: int) -> None:
    assert (await client.post("/notes", json={"text": text})).status_code == status
