"""A small application with its own tables, and queries that show whether a connection is clean."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import ForeignKey, Integer, String, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.database import SessionDep, SessionFactoryDep

SLOW = {
    # Each takes about a quarter of a second.
    "postgresql": "SELECT pg_sleep(0.25)",
    "sqlite": "WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter"
    " LIMIT 1000000) SELECT count(*) FROM counter",
}
CONNECTION_STATE = {
    "postgresql": {
        "user is another one": "SELECT current_user <> session_user",
        "tenant": "SELECT coalesce(current_setting('culprit.tenant', true), '')",
        "settings": "SELECT count(*) FROM pg_settings WHERE source = 'session'",
        "prepared statements": "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
        "channels": "SELECT count(*) FROM pg_listening_channels()",
        "temporary tables": "SELECT count(*) FROM pg_class WHERE relpersistence = 't'",
        "advisory locks": "SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database"
        " WHERE locktype = 'advisory' AND datname = current_database()",
        # Without those of autovacuum.
        "locks of others": "SELECT count(*) FROM pg_locks JOIN pg_class AS c ON c.oid = relation"
        " JOIN pg_stat_activity USING (pid) WHERE relname LIKE 'neighbours_%'"
        " AND datname = current_database() AND backend_type = 'client backend'"
        " AND pid <> pg_backend_pid()",
    },
    "sqlite": {
        "query only": "PRAGMA query_only",
        "foreign keys": "PRAGMA foreign_keys",
        "temporary tables": "SELECT count(*) FROM temp.sqlite_schema",
    },
}
CLEAN_CONNECTION: dict[str, dict[str, object]] = {
    "postgresql": dict.fromkeys(CONNECTION_STATE["postgresql"], 0)
    | {"user is another one": False, "tenant": ""},
    "sqlite": {"query only": 0, "foreign keys": 1, "temporary tables": 0},
}

begun, hanging, told = asyncio.Event(), asyncio.Event(), asyncio.Event()
started: list[asyncio.Task[None]] = []
router = APIRouter(prefix="/neighbours")


class NeighbourBase(DeclarativeBase):
    """Separate from the models of the service, so that migrations ignore the tables."""


class Author(NeighbourBase):
    """A row to leak."""

    __tablename__ = "neighbours_authors"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Book(NeighbourBase):
    """A row that refers to another one."""

    __tablename__ = "neighbours_books"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))


async def get_db(factory: SessionFactoryDep) -> AsyncIterator[AsyncSession]:
    """Yield a session as many tutorials do: each exception, even a 404, rolls it back."""
    async with factory() as session:
        try:
            yield session
        except Exception:
            await session.rollback()
            raise


# Open until the response is sent, unlike SessionDep.
TutorialSession = Annotated[AsyncSession, Depends(get_db)]


def greeter() -> str:
    """A dependency to override."""
    return "the real one"


async def read_connection(session: AsyncSession) -> dict[str, Any]:
    """Read the state that a rollback alone does not restore."""
    queries = CONNECTION_STATE[session.get_bind().dialect.name]
    return {name: await session.scalar(text(query)) for name, query in queries.items()}


async def save(factory: async_sessionmaker[AsyncSession], name: str) -> None:
    """Commit an author in a separate session."""
    async with factory() as session:
        session.add(Author(name=name))
        await session.commit()


@router.get("/connection")
async def show_connection(session: TutorialSession) -> dict[str, Any]:
    return await read_connection(session)


@router.get("/authors")
async def list_authors(session: SessionDep) -> list[str]:
    return list(await session.scalars(select(Author.name).order_by(Author.id)))


@router.get("/authors/{name}")
async def read_author(name: str, session: TutorialSession) -> str:
    author = await session.scalar(select(Author).where(Author.name == name))
    if author is None:
        raise HTTPException(404)
    return author.name


@router.post("/authors/{name}")
async def create_author(name: str, session: TutorialSession) -> int:
    author = Author(name=name)
    session.add(author)
    await session.commit()
    return author.id


@router.post("/books/{title}/of/{author_id}")
async def create_book(title: str, author_id: int, session: TutorialSession) -> None:
    session.add(Book(title=title, author_id=author_id))
    await session.commit()


@router.post("/statement")
async def execute(sql: str, session: SessionDep) -> None:
    await session.execute(text(sql))
    await session.commit()


@router.post("/authors/{name}/slowly")
async def create_slowly(name: str, session: TutorialSession) -> None:
    session.add(Author(name=name))
    await session.flush()
    begun.set()
    await session.execute(text(SLOW[session.get_bind().dialect.name]))
    await session.commit()


@router.post("/authors/{name}/when-told")
async def create_when_told(name: str, session: TutorialSession) -> None:
    session.add(Author(name=name))
    await session.flush()
    hanging.set()
    await told.wait()
    await session.commit()


@router.get("/authors-when-told")
async def list_when_told(session: TutorialSession) -> list[str]:
    found = list(await session.scalars(select(Author.name)))
    hanging.set()
    await told.wait()
    return found


@router.get("/side-by-side")
async def count_side_by_side(factory: SessionFactoryDep) -> list[int]:
    async def count() -> int:
        async with factory() as session:
            await session.execute(text("/* traced */ SELECT 1"))
            return len((await session.scalars(select(Author))).all())

    return list(await asyncio.gather(*(count() for _ in range(5))))


@router.post("/side-by-side/{name}")
async def write_side_by_side(name: str, factory: SessionFactoryDep) -> None:
    await asyncio.gather(*(save(factory, f"{name} {number}") for number in range(5)))


@router.post("/interleaved/{name}/{other}")
async def interleave(
    name: str, other: str, session: TutorialSession, factory: SessionFactoryDep
) -> None:
    session.add(Author(name=name))
    await session.flush()
    async with asyncio.timeout(1):  # on SQLite, a second writer waits for the first
        await save(factory, other)
    await session.commit()


@router.post("/authors/{name}/in-background")
async def create_in_background(
    name: str, session: SessionDep, factory: SessionFactoryDep, tasks: BackgroundTasks
) -> None:
    await session.scalars(select(Author))
    tasks.add_task(save, factory, name)


@router.post("/audit/{name}")
async def fire_and_forget(name: str, factory: SessionFactoryDep) -> None:
    async def audit() -> None:
        await told.wait()
        await save(factory, name)

    started.append(asyncio.create_task(audit()))


@router.get("/stream")
async def stream_with_session_of_dependency(session: SessionDep) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for name in await session.scalars(select(Author.name)):  # closed long ago: begins anew
            yield f"{name}\n"

    return StreamingResponse(lines())


@router.get("/endless")
async def stream_without_end(factory: SessionFactoryDep) -> StreamingResponse:
    async def ticks() -> AsyncIterator[str]:
        while True:
            async with factory() as session:
                names = (await session.scalars(select(Author.name))).all()
            yield f"{len(names)}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(ticks())


@router.get("/endless-transaction")
async def stream_without_end_in_a_transaction(factory: SessionFactoryDep) -> StreamingResponse:
    async def ticks() -> AsyncIterator[str]:
        async with factory() as session:
            while True:
                names = (await session.scalars(select(Author.name))).all()
                yield f"{len(names)}\n"

    return StreamingResponse(ticks())


@router.websocket("/socket")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for message in socket.iter_text():
        await socket.send_text(message)


@router.get("/greeting")
async def greet(greeting: Annotated[str, Depends(greeter)]) -> str:
    return greeting


@router.get("/cache")
async def show_cache(request: Request) -> list[str]:
    return list(request.state.cache)


@router.post("/cache/{value}")
async def fill_cache(value: str, request: Request) -> None:
    request.state.cache.append(value)


@router.post("/exit")
async def exit_with_a_row(session: TutorialSession) -> None:
    session.add(Author(name="exit"))
    await session.flush()
    raise SystemExit(3)
