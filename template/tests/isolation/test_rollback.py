"""All requests of a test see its rows, and no later test does."""

import asyncio

import pytest
from fastapi import FastAPI
from sqlalchemy import func, insert, inspect, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.guard import Phase, guard
from tests.harness.transaction import RolledBackTransaction
from tests.http_client import AsyncClient, connect_websocket
from tests.isolation.conftest import ExpectRefusal
from tests.isolation.probe import Note, told

pytestmark = pytest.mark.usefixtures("probe_table")

# A leak shows in the run that comes second.
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


@twice
async def test_sessions_side_by_side_read_what_is_committed(client: AsyncClient, run: int) -> None:
    await client.post("/probe/notes/a")
    assert (await client.get("/probe/dashboard")).json() == [1] * 5
    await client.post("/probe/notes/b/with/c/at-once")
    assert set(await names(client)) == {"a", "b", "c"}


@twice
async def test_session_of_the_test_reads_while_a_request_is_under_way(
    client: AsyncClient, db_session: AsyncSession, run: int
) -> None:
    count = select(func.count()).select_from(Note)
    told.clear()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(client.post("/probe/notes/a/when-told"))
        assert await db_session.scalar(count) == 0
        told.set()
        while await db_session.scalar(count) == 0:
            pass
    await db_session.rollback()  # does not undo the request
    assert await names(client) == ["a"]


async def test_rollback_of_what_was_only_read(client: AsyncClient) -> None:
    await client.post("/probe/notes/a")
    assert (await client.get("/probe/notes/b")).status_code == 404
    assert (await client.get("/probe/notes/a")).json() == "a"


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
async def test_commit_of_the_connection_is_gone_after_the_test(
    client: AsyncClient, run: int
) -> None:
    assert await names(client) == []
    await client.post("/probe/connection/commit")
    assert await names(client) == ["a"]


async def test_settings_end_with_the_transaction_that_has_set_them(
    client: AsyncClient, db_engine: AsyncEngine
) -> None:
    if db_engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no settings of a transaction")
    for change in ("SET LOCAL app.tenant = 'a'", "SELECT set_config('app.tenant', 'a', true)"):
        await client.post("/probe/statement", params={"sql": change})
        read = {"sql": "SELECT current_setting('app.tenant', true)"}
        assert (await client.post("/probe/statement", params=read)).json() in {"", "None"}


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


async def test_related_objects_of_the_test_stay(db_session: AsyncSession) -> None:
    child = Note(name="child", parent=Note(name="parent"))
    db_session.add(child)
    parent = (await db_session.scalars(select(Note).where(Note.name == "parent"))).one()
    assert child.parent is parent
    await db_session.commit()
    assert len((await db_session.scalars(select(Note))).all()) == 2
    assert child.parent is parent
    assert parent.children == [child]


async def test_related_objects_that_others_have_replaced_go(
    app: FastAPI, db_session: AsyncSession
) -> None:
    parent, child, orphan = Note(name="parent"), Note(name="child"), Note(name="orphan")
    child.parent, orphan.parent = parent, None
    db_session.add_all([child, orphan])
    await db_session.commit()
    async with app.state.session_factory() as session:
        statement = update(Note).where(Note.name == "child").values(parent_id=orphan.id)
        await session.execute(statement)
        await session.commit()
    await db_session.scalars(select(Note))
    assert "parent" in inspect(child).unloaded
    assert "children" in inspect(parent).unloaded
    assert orphan.parent is None


async def test_uncommitted_write_of_the_test_is_an_error_that_says_what_to_do(
    client: AsyncClient, db_session: AsyncSession, expect_refusal: ExpectRefusal
) -> None:
    db_session.add(Note(name="a"))
    with expect_refusal(r"await db_session\.commit\(\)"):
        await client.get("/probe/notes")
    await db_session.flush()
    with expect_refusal(r"await db_session\.commit\(\)"):
        await client.get("/probe/notes")
    await db_session.commit()
    assert await names(client) == ["a"]
    db_session.add(Note(name="a"))
    with pytest.raises(IntegrityError):
        await db_session.flush()
    with expect_refusal(r"await db_session\.rollback\(\)"):
        await client.get("/probe/notes")


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


async def test_deferred_constraints_are_checked_before_the_rollback(
    rolled_back_transaction: RolledBackTransaction,
) -> None:
    engine = rolled_back_transaction.engine
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite checks what is deferred at a commit alone")
    transaction = rolled_back_transaction.of_a_test()
    with guard.test_in(Phase.FIXTURES):
        await transaction.__aenter__()
        async with engine.begin() as connection:
            await connection.execute(insert(Note).values(name="a", later_parent_id=0))
        with pytest.raises(IntegrityError):
            await transaction.__aexit__(None, None, None)
