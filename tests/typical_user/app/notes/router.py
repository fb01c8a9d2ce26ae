"""The notes' endpoints."""

from collections.abc import Sequence
from typing import Annotated

import humanize
from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from app.core.database import SessionDep
from app.core.dependencies import SettingsDep
from app.notes.models import Note

router = APIRouter(prefix="/notes", tags=["notes"])


Text = Annotated[str, Body(embed=True, max_length=200, pattern=r"^[^\x00]*$")]


class NoteRead(BaseModel):
    """A note."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    text: str


@router.post("", status_code=201, response_model=NoteRead)
async def take_note(text: Text, session: SessionDep) -> Note:
    """Keep a text."""
    note = Note(text=text)
    session.add(note)
    await session.commit()
    return note


@router.get("", response_model=list[NoteRead])
async def list_notes(session: SessionDep, settings: SettingsDep) -> Sequence[Note]:
    """Return the first notes."""
    notes = select(Note).order_by(Note.id).limit(settings.notes_per_page)
    return (await session.scalars(notes)).all()


@router.get("/motto")
async def read_motto(request: Request) -> str:
    """Return what was opened at the start, in words."""
    return f"{request.state.motto}, {humanize.intcomma(1000)} times"
