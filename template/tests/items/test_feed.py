"""The feed alone: what it stores, who receives it, and in what order."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from unittest.mock import AsyncMock

import anyio
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from time_machine import TimeMachineFixture

from app.core.database import begin_reading
from app.core.unavailable import DatabaseUnavailableError
from app.items import feed as module
from app.items.feed import Feed, delete_old_events
from app.items.jobs import delete_old_item_events
from app.items.models import ItemEvent, ItemEventKind
from app.items.schemas import ItemEventRead, ItemRead
from app.main import create_app
from app.settings import Settings
from app.users.models import User
from tests.harness.asgi import running
from tests.harness.jobs import JobQueue
from tests.http_client import AsyncClient
from tests.items.factories import ItemFactory

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LONG = 2000 * "\N{GRINNING FACE}"  # 8,000 bytes, too long for a notification of PostgreSQL
FIVE: list[ItemEventKind] = ["created", "changed", "changed", "changed", "deleted"]


@pytest.fixture
def factory(app: FastAPI) -> async_sessionmaker[AsyncSession]:
    """The application's session factory."""
    factory: async_sessionmaker[AsyncSession] = app.state.session_factory
    return factory


@pytest.fixture
async def item(item_factory: type[ItemFactory], owner: User) -> ItemRead:
    """An item of the owner that is not stored."""
    return ItemRead.model_validate(item_factory.build(id=1, owner_id=owner.id))


async def publish(feed: Feed, session: AsyncSession, item: ItemRead, *kinds: ItemEventKind) -> None:
    """Change an item several times, each in its own transaction."""
    for kind in kinds:
        await feed.publish(session, kind, item)
        await session.commit()


async def receive(events: AsyncIterator[ItemEventRead]) -> ItemEventRead:
    """Wait for the next event."""
    with anyio.fail_after(5):
        return await anext(events)


async def stored(session: AsyncSession) -> list[str]:
    """Return the kinds of the stored events."""
    return list(await session.scalars(select(ItemEvent.kind).order_by(ItemEvent.id)))


async def test_event_is_rolled_back_with_its_transaction(
    feed: Feed, db_session: AsyncSession, item: ItemRead, owner: User
) -> None:
    async with feed.follow(owner.id, after=0) as events:
        await feed.publish(db_session, "changed", item)
        await db_session.rollback()
        await publish(feed, db_session, item, "deleted")
        assert (await receive(events)).kind == "deleted"
    assert await stored(db_session) == ["deleted"]


async def test_event_of_any_size_arrives(
    feed: Feed, owner_client: AsyncClient, owner: User
) -> None:
    data = {"title": "Lamp", "description": LONG}
    async with feed.follow(owner.id, after=0) as events:
        await owner_client.post("/items", json=data)
        item = (await receive(events)).item
    assert item.description == LONG


async def test_follower_gets_all_pages_in_order(
    feed: Feed,
    db_session: AsyncSession,
    item: ItemRead,
    owner: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    await publish(feed, db_session, item, *FIVE)
    async with feed.follow(owner.id, after=0) as events:
        received = [await receive(events) for _ in FIVE]
    assert received == [event async for event in feed.events(owner.id)]
    assert [event.kind for event in received] == FIVE
    assert received == sorted(received, key=lambda event: event.id)


@pytest.mark.committed
async def test_transactions_of_an_owner_take_turns(
    feed: Feed,
    factory: async_sessionmaker[AsyncSession],
    item: ItemRead,
    owner: User,
) -> None:
    kinds = []

    async def change() -> None:
        async with factory() as session:
            await publish(feed, session, item, "changed")
        kinds.append("changed")

    async with anyio.create_task_group() as tasks, factory() as session:
        await feed.publish(session, "created", item)
        await session.flush()
        tasks.start_soon(change)
        with anyio.move_on_after(0.2):  # it always takes that long: the other one waits for this
            while not kinds:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        kinds.append("created")
        await session.commit()
    assert kinds == ["created", "changed"]
    assert [event.kind async for event in feed.events(owner.id)] == kinds


@pytest.mark.committed
async def test_other_processes_are_told(
    feed: Feed, settings: Settings, owner: User, item: ItemRead
) -> None:
    if not settings.database_url.startswith("postgresql"):
        pytest.skip("SQLite tells the followers in the same process only")
    async with (
        running(create_app(settings)) as other,
        other.app.state.session_factory() as session,
        feed.follow(owner.id, after=0) as events,
    ):
        for _ in range(3):
            await publish(other.lifespan_state["feed"], session, item, "changed")
            assert (await receive(events)).kind == "changed"


async def test_follower_waits_for_a_database_that_is_away(
    feed: Feed,
    db_session: AsyncSession,
    item: ItemRead,
    owner: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = []

    async def fail_twice(session: AsyncSession) -> None:
        attempts.append(session)
        if len(attempts) < 3:
            raise DatabaseUnavailableError("SELECT 1", {}, OSError("away"))

    monkeypatch.setattr(module, "begin_reading", fail_twice)
    monkeypatch.setattr(module, "RETRY", 0.01)
    await publish(feed, db_session, item, "changed")
    async with feed.follow(owner.id, after=0) as events:
        assert (await receive(events)).kind == "changed"
    assert len(attempts) == 3


async def test_follower_reads_when_it_is_woken(
    feed: Feed,
    db_session: AsyncSession,
    item: ItemRead,
    owner: User,
    stranger: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = item.model_copy(update={"owner_id": stranger.id})
    reading = AsyncMock(wraps=begin_reading)
    monkeypatch.setattr(module, "begin_reading", reading)
    async with feed.follow(owner.id, after=0) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(receive, events)
        await publish(feed, db_session, theirs, *FIVE, *FIVE)
        await publish(feed, db_session, item, "changed")
    # At first, for the event, and on PostgreSQL also when it starts to listen.
    assert 1 <= reading.await_count <= 3


async def test_events_of_an_owner_go_with_the_account(
    feed: Feed, db_session: AsyncSession, item: ItemRead, owner: User, stranger: User
) -> None:
    theirs = item.model_copy(update={"owner_id": stranger.id})
    await publish(feed, db_session, item, "created", "deleted")
    await publish(feed, db_session, theirs, "changed")
    await db_session.delete(owner)
    await db_session.commit()
    assert await stored(db_session) == ["changed"]


async def test_events_are_kept_for_a_while(
    feed: Feed,
    factory: async_sessionmaker[AsyncSession],
    db_session: AsyncSession,
    item: ItemRead,
    time_machine: TimeMachineFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    time_machine.move_to(NOON, tick=False)
    await publish(feed, db_session, item, *FIVE)
    time_machine.move_to(NOON + timedelta(days=1), tick=False)
    await publish(feed, db_session, item, "deleted")
    assert await delete_old_events(factory, keep=timedelta(days=1)) == 0
    time_machine.move_to(NOON + timedelta(days=1, seconds=1), tick=False)
    assert await delete_old_events(factory, keep=timedelta(days=1)) == 5
    assert await stored(db_session) == ["deleted"]


async def test_old_events_are_deleted_each_night(
    feed: Feed,
    db_session: AsyncSession,
    item: ItemRead,
    job_queue: JobQueue,
    time_machine: TimeMachineFixture,
) -> None:
    time_machine.move_to(NOON, tick=False)
    await publish(feed, db_session, item, *FIVE)
    time_machine.move_to(NOON + timedelta(days=8), tick=False)
    await delete_old_item_events.enqueue(db_session)
    await db_session.commit()
    await job_queue.run()
    assert delete_old_item_events.schedule == "0 3 * * *"
    assert await stored(db_session) == []
