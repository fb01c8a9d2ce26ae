import warnings

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.notes.models import Note
from tests.http_client import AsyncClient


async def test_note_is_kept(client: AsyncClient, db_session: AsyncSession) -> None:
    response = await client.post("/notes", json={"text": "milk"})
    assert response.status_code == 201
    assert await db_session.scalar(select(Note.text)) == "milk"


async def test_list_holds_as_many_as_the_setting_says(client: AsyncClient, note: Note) -> None:
    await client.post("/notes", json={"text": "bread"})
    await client.post("/notes", json={"text": "salt"})
    response = await client.get("/notes")
    assert [each["text"] for each in response.json()] == [note.text, "bread"]


async def test_nothing_is_left_of_other_tests(db_session: AsyncSession) -> None:
    assert await db_session.scalar(select(func.count()).select_from(Note)) == 0


async def test_lifespan_step_is_seen(client: AsyncClient) -> None:
    assert (await client.get("/notes/motto")).json() == "Nothing is lost, 1,000 times"


@pytest.mark.slow
def test_warnings_that_we_know_of_are_let_through() -> None:
    warnings.warn("Old notes", DeprecationWarning, stacklevel=1)
