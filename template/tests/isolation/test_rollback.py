"""One test's rows: seen by all its requests, gone when it is over."""

import asyncio

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.transaction import rolled_back_transaction
from tests.http_client import AsyncClient, connect_websocket
from tests.isolation.probe import Note

pytestmark = pytest.mark.usefixtures("probe_table")

# A leak shows in whichever of the runs comes second.
twice = pytest.mark.parametrize("run", [1, 2])


async def names(client: AsyncClient) -> list[str]:
    response = await client.get("/probe/notes")
    return list(response.json())


@twice
async def test_commits_are_seen_by_later_requests_and_gone_after_the_test(
    client: AsyncClient, db_session: AsyncSession, run: int
) -> None:
    assert await names(client) == []
    await client.post("/probe/notes/a")
    assert await names(client) == ["a"]
    assert await db_session.scalar(select(func.count()).select_from(Note)) == 1


@twice
async def test_background_task_and_its_request_both_keep_their_rows(
    client: AsyncClient, run: int
) -> None:
    await client.post("/probe/notes/a", params={"in_background": "b"})
    assert await names(client) == ["a", "b"]


@twice
async def test_sessions_of_one_request_keep_their_rows_apart(client: AsyncClient, run: int) -> None:
    await client.post("/probe/notes/a/while/b")
    assert await names(client) == ["a", "b"]


async def test_rollback_that_would_undo_the_commit_of_another_session_is_refused(
    client: AsyncClient,
) -> None:
    with pytest.raises(AssertionError, match="own_database"):
        await client.post("/probe/undone/a/but/b")


@twice
async def test_websocket_commits_are_seen_and_gone_after_the_test(
    client: AsyncClient, run: int
) -> None:
    assert await names(client) == []
    async with connect_websocket(client, "/probe/socket") as websocket:
        await websocket.send_text("a")
        assert await websocket.receive_text() == "saved a"
        assert await names(client) == ["a"]


@twice
async def test_stream_commits_are_seen_and_gone_after_the_test(
    client: AsyncClient, run: int
) -> None:
    assert await names(client) == []
    await client.get("/probe/stream/2")
    assert await names(client) == ["line 0", "line 1"]


@twice
async def test_rollback_after_integrity_error_undoes_the_request_alone(
    client: AsyncClient, db_session: AsyncSession, run: int
) -> None:
    db_session.add(Note(name="arranged"))
    await db_session.commit()
    await client.post("/probe/notes/first")
    assert (await client.post("/probe/notes/arranged")).status_code == 409
    await client.post("/probe/notes/first/or/other")
    await client.post("/probe/undone/nothing")
    await client.post("/probe/notes/last")
    assert await names(client) == ["arranged", "first", "other", "last"]


@pytest.mark.parametrize("kind", ["orm", "core", "connection"])
async def test_forgotten_commit_is_found_out(client: AsyncClient, kind: str) -> None:
    await client.post(f"/probe/forgotten/{kind}")
    assert await names(client) == []


@twice
async def test_commit_of_the_connection_is_refused(client: AsyncClient, run: int) -> None:
    assert await names(client) == []
    with pytest.raises(AssertionError, match="own_database"):
        await client.post("/probe/connection/commit")


async def test_session_of_the_test_shows_what_requests_changed(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    note, doomed = Note(name="old"), Note(name="doomed")
    db_session.add_all([note, doomed])
    await db_session.commit()
    await client.post("/probe/renamed/old/new")
    assert note.name == "new"
    assert list(await db_session.scalars(select(Note.name).order_by(Note.id))) == ["new", "doomed"]
    await client.delete("/probe/notes/doomed")
    assert await db_session.get(Note, doomed.id) is None


async def test_uncommitted_write_of_the_test_is_an_error_that_says_what_to_do(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    db_session.add(Note(name="a"))
    with pytest.raises(AssertionError, match=r"await db_session\.commit\(\)"):
        await client.get("/probe/notes")
    await db_session.flush()
    with pytest.raises(AssertionError, match=r"await db_session\.commit\(\)"):
        await client.get("/probe/notes")
    await db_session.commit()
    assert await names(client) == ["a"]


async def test_error_in_the_test_leaves_its_session_usable(db_session: AsyncSession) -> None:
    db_session.add(Note(name="a"))
    await db_session.commit()
    db_session.add(Note(name="a"))
    with pytest.raises(IntegrityError):
        await db_session.commit()
    await db_session.rollback()
    assert list(await db_session.scalars(select(Note.name))) == ["a"]


async def test_foreign_keys_are_enforced(client: AsyncClient) -> None:
    with pytest.raises(IntegrityError):
        await client.post("/probe/orphan")


async def test_deferred_constraints_are_checked_before_the_rollback(db_engine: AsyncEngine) -> None:
    if db_engine.dialect.name == "sqlite":
        pytest.skip("SQLite checks what is deferred at a commit alone")
    with pytest.raises(IntegrityError):
        async with rolled_back_transaction(db_engine) as transaction:
            await transaction.connection.execute(insert(Note).values(name="a", later_parent_id=0))


async def test_second_connection_fails_fast_on_a_lock(
    client: AsyncClient, db_engine: AsyncEngine
) -> None:
    await client.post("/probe/notes/a")
    async with asyncio.timeout(4):
        with pytest.raises(DBAPIError):
            async with db_engine.connect() as connection, connection.begin():
                await connection.execute(insert(Note).values(name="a"))
