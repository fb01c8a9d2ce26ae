"""Ids and texts that a database cannot store are refused before it is asked."""

from typing import Annotated

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field

from app.core.schemas import NO_NUL, ResourceId
from tests.http_client import AsyncClient


class Note(BaseModel):
    text: Annotated[str, Field(pattern=NO_NUL)]


@pytest.fixture(autouse=True)
def endpoints(app: FastAPI) -> None:
    """Endpoints that return their input."""

    @app.get("/notes/{note_id}")
    async def read_note(note_id: ResourceId) -> int:
        return note_id

    @app.post("/notes")
    async def take_note(note: Note) -> Note:
        return note


@pytest.mark.parametrize(
    "note_id", ["0", "-1", "2147483648", "first", "+2", "1_000", "2.0", "2%0B", "%C2%B2"]
)
async def test_id_that_no_row_can_have_is_refused(client: AsyncClient, note_id: str) -> None:
    assert (await client.get(f"/notes/{note_id}")).status_code == 422


async def test_greatest_id_is_taken(client: AsyncClient) -> None:
    assert (await client.get(f"/notes/{2**31 - 1}")).json() == 2147483647


@pytest.mark.parametrize(("text", "status"), [("a\0b", 422), ("a\nb", 200), ("", 200)])
async def test_text_holds_no_nul(client: AsyncClient, text: str, status: int) -> None:
    assert (await client.post("/notes", json={"text": text})).status_code == status
