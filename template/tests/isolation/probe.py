"""A small application that does whatever can make isolation leak."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import ForeignKey, Integer, String, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from app.core.database import SessionDep, SessionFactoryDep, create_engine, get_session
from app.core.dependencies import SettingsDep

# Open until the response is sent, unlike SessionDep: the harder case for background tasks.
LongSession = Annotated[AsyncSession, Depends(get_session)]
SessionFactory = async_sessionmaker[AsyncSession]

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
hanging, told = asyncio.Event(), asyncio.Event()
router = APIRouter(prefix="/probe")


class ProbeBase(DeclarativeBase):
    """Separate from the models of the service, so that migrations ignore the tables."""


class Note(ProbeBase):
    """A row to leak."""

    __tablename__ = "isolation_probe_notes"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("isolation_probe_notes.id"))
    later_parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("isolation_probe_notes.id", deferrable=True, initially="DEFERRED")
    )
    parent: Mapped["Note | None"] = relationship(
        foreign_keys=parent_id, remote_side="Note.id", back_populates="children"
    )
    children: Mapped[list["Note"]] = relationship(
        foreign_keys=parent_id, back_populates="parent", passive_deletes="all"
    )


class Seed(ProbeBase):
    """A row that exists before the tests."""

    __tablename__ = "isolation_probe_seeds"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


def greeter() -> str:
    """A dependency to override."""
    return "the real one"


async def save(factory: SessionFactory, name: str) -> None:
    """Commit a note in a separate session."""
    async with factory() as session:
        session.add(Note(name=name))
        await session.commit()


@router.get("/notes")
async def list_notes(session: LongSession) -> list[str]:
    return list(await session.scalars(select(Note.name).order_by(Note.id)))


@router.post("/notes/{name}")
async def create_note(
    name: str,
    session: LongSession,
    factory: SessionFactoryDep,
    tasks: BackgroundTasks,
    in_background: str | None = None,
) -> str:
    note = Note(name=name)
    session.add(note)
    try:
        await session.commit()
    except IntegrityError as error:
        await session.rollback()
        raise HTTPException(409) from error
    await session.refresh(note)  # begins a transaction that stays open
    if in_background:
        tasks.add_task(save, factory, in_background)
    return note.name


@router.post("/notes/{name}/or/{other}")
async def create_note_or_other(name: str, other: str, session: LongSession) -> str:
    session.add(Note(name=name))
    try:
        await session.commit()
    except IntegrityError:
        await session.rollback()
        session.add(Note(name=other))
        await session.commit()
        return other
    return name


@router.post("/undone/{name}")
async def write_and_roll_back(name: str, session: LongSession) -> None:
    session.add(Note(name=name))
    await session.flush()
    await session.rollback()


@router.post("/undone/{name}/but/{kept}")
async def roll_back_after_another_commit(
    name: str, kept: str, session: LongSession, factory: SessionFactoryDep
) -> None:
    session.add(Note(name=name))
    await session.flush()
    await save(factory, kept)
    await session.rollback()


@router.post("/notes/{name}/while/{other}")
async def create_note_while_other_session_reads(
    name: str, other: str, session: LongSession, factory: SessionFactoryDep
) -> None:
    async with factory() as reading:
        await reading.scalars(select(Note))
        session.add(Note(name=name))
        await session.commit()
        await save(factory, other)
        await session.rollback()


@router.post("/orphan")
async def create_orphan(session: LongSession) -> None:
    session.add(Note(name="orphan", parent_id=0))
    await session.commit()


@router.post("/renamed/{name}/{new_name}")
async def rename(name: str, new_name: str, session: LongSession) -> None:
    note = (await session.scalars(select(Note).where(Note.name == name))).one()
    note.name = new_name
    await session.commit()


@router.delete("/notes/{name}")
async def delete_note(name: str, session: LongSession) -> None:
    note = (await session.scalars(select(Note).where(Note.name == name))).one()
    await session.delete(note)
    await session.commit()


@router.post("/forgotten/orm")
async def forget_commit(session: LongSession) -> None:
    session.add(Note(name="forgotten"))
    await session.flush()


@router.post("/forgotten/core")
async def forget_commit_of_statement(session: LongSession) -> None:
    await session.execute(insert(Note).values(name="forgotten"))


@router.post("/forgotten/connection")
async def forget_commit_of_connection(session: LongSession) -> None:
    connection = await session.connection()
    await connection.execute(insert(Note).values(name="forgotten"))


@router.post("/connection/commit")
async def commit_the_connection(session: LongSession) -> None:
    connection = await session.connection()
    await connection.execute(insert(Note).values(name="a"))
    await connection.commit()


@router.get("/notes/{name}")
async def read_note_or_roll_back(name: str, session: LongSession) -> str:
    found = await session.scalar(select(Note.name).where(Note.name == name))
    if found is None:
        await session.rollback()  # as a dependency with `except: rollback()` does for each 404
        raise HTTPException(404)
    return found


@router.get("/dashboard")
async def count_side_by_side(factory: SessionFactoryDep) -> list[int]:
    async def count() -> int:
        async with factory() as session:
            await session.execute(text("/* traced */ SELECT 1"))
            await asyncio.sleep(0)
            return len((await session.scalars(select(Note))).all())

    return await asyncio.gather(*(count() for _ in range(5)))


@router.post("/notes/{name}/when-told")
async def create_note_when_told(name: str, session: LongSession) -> None:
    await session.scalars(select(Note))
    await told.wait()
    session.add(Note(name=name))
    await session.commit()


@router.post("/notes/{name}/with/{other}/at-once")
async def create_notes_at_once(name: str, other: str, factory: SessionFactoryDep) -> None:
    await asyncio.gather(save(factory, name), save(factory, other))


@router.post("/swallowed/{name}")
async def swallow_all_errors(name: str, session: LongSession, factory: SessionFactoryDep) -> None:
    session.add(Note(name=name))
    await session.flush()
    with suppress(Exception):
        await save(factory, "other")


@router.post("/own-engine/{name}")
async def write_on_an_engine_of_its_own(name: str, settings: SettingsDep) -> None:
    engine = create_engine(settings.database_url)
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(Note).values(name=name))
    finally:
        await engine.dispose()


@router.post("/statement")
async def execute(sql: str, session: LongSession) -> str:
    result = await (await session.connection()).execute(text(sql))
    value = result.scalar() if result.returns_rows else None
    await session.commit()
    return str(value)


@router.get("/cached/{key}")
async def remember_first_value(key: str, value: str, request: Request) -> str:
    return str(request.state.cache.setdefault(key, value))


@router.post("/slow/{name}")
async def create_slowly(name: str, factory: SessionFactoryDep) -> int:
    async with factory() as session:
        session.add(Note(name=name))
        await session.flush()
        await asyncio.sleep(0)
        await session.commit()
        return len((await session.scalars(select(Note))).all())


@router.post("/numbered")
async def create_next(session: LongSession) -> None:
    count = len((await session.scalars(select(Note))).all())
    await asyncio.sleep(0)  # lets others continue
    session.add(Note(name=str(count)))
    await session.commit()


@router.post("/hang")
async def write_and_hang(session: LongSession) -> None:
    session.add(Note(name="never"))
    await session.flush()
    hanging.set()
    await asyncio.Event().wait()


@router.get("/stream/{count}")
async def stream(count: int, factory: SessionFactoryDep) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(count):
            await save(factory, f"line {number}")
            yield f"line {number}\n"

    return StreamingResponse(lines())


@router.websocket("/socket")
async def socket(websocket: WebSocket, factory: SessionFactoryDep) -> None:
    await websocket.accept()
    async for name in websocket.iter_text():
        await save(factory, name)
        await websocket.send_text(f"saved {name}")


@router.websocket("/socket-with-session")
async def socket_with_session(websocket: WebSocket, session: SessionDep) -> None:
    await websocket.accept()
    async for name in websocket.iter_text():
        session.add(Note(name=name))
        await session.commit()
        count = len((await session.scalars(select(Note))).all())
        await websocket.send_text(f"{count} saved")  # a transaction stays open until the next one


@router.post("/endless")
async def endless(factory: SessionFactoryDep) -> StreamingResponse:
    async def ticks() -> AsyncIterator[str]:
        while True:
            async with factory() as session:
                names = await session.scalars(select(Note.name))
                yield ",".join(names) + "\n"
            await asyncio.sleep(0)

    return StreamingResponse(ticks())


@router.get("/tenant/{name}")
async def set_tenant(name: str) -> str:
    before = tenant.get()
    tenant.set(name)
    return before


@router.get("/greeting")
async def greet(greeting: Annotated[str, Depends(greeter)]) -> str:
    return greeting


@router.get("/me")
async def me(request: Request) -> str:
    return request.headers["x-user"]


@router.get("/visits")
async def count_visits(request: Request) -> int:
    request.state.visits += 1
    visits: int = request.state.visits
    return visits
