"""The feed on its own. It needs no database, so it is tried on asyncio and on trio."""

import time
from datetime import UTC, datetime
from decimal import Decimal

import anyio
import pytest

from app.items.feed import Feed
from app.items.models import ItemStatus
from app.items.schemas import ItemRead
from tests.patterns.backends import on_both_backends, run_on

OWNER, STRANGER = 1, 2


def item(item_id: int, owner_id: int = OWNER) -> ItemRead:
    return ItemRead(
        id=item_id,
        owner_id=owner_id,
        title="",
        description=None,
        price=Decimal(0),
        status=ItemStatus.OWNED,
        tags=[],
        created_at=datetime.now(UTC),
    )


@on_both_backends
def test_event_reaches_each_follower_of_its_owner_only(backend: str) -> None:
    async def check() -> None:
        feed = Feed()
        with feed.follow(OWNER) as one, feed.follow(OWNER) as two, feed.follow(STRANGER) as other:
            feed.publish("created", item(7))
            feed.publish("deleted", item(8, STRANGER))
            with anyio.fail_after(1):
                assert [(await events.receive()).item.id for events in (one, two, other)] == [
                    7,
                    7,
                    8,
                ]
            with pytest.raises(anyio.WouldBlock):
                one.receive_nowait()

    run_on(backend, check)


@on_both_backends
def test_waiting_follower_is_woken(backend: str) -> None:
    async def check() -> None:
        feed = Feed()
        kinds = []

        async def follow(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with feed.follow(OWNER) as events:
                task_status.started()
                kinds.append((await events.receive()).kind)

        with anyio.fail_after(1):
            async with anyio.create_task_group() as tasks:
                await tasks.start(follow)
                feed.publish("changed", item(1))
        assert kinds == ["changed"]

    run_on(backend, check)


@on_both_backends
def test_follower_who_does_not_read_is_dropped_and_holds_up_nobody(backend: str) -> None:
    async def check() -> None:
        feed = Feed(backlog=2)
        with feed.follow(OWNER) as idle, feed.follow(OWNER) as busy:
            for number in range(1, 5):
                feed.publish("created", item(number))
                assert (await busy.receive()).item.id == number
            assert feed.count_followers(OWNER) == 1
            with anyio.fail_after(1):
                assert [event.item.id async for event in idle] == [1, 2]

    run_on(backend, check)


@on_both_backends
def test_follower_who_is_cancelled_is_forgotten(backend: str) -> None:
    async def check() -> None:
        feed = Feed()
        with anyio.move_on_after(0.01), feed.follow(OWNER) as events:
            assert feed.count_followers(OWNER) == 1
            await events.receive()
        assert feed.count_followers(OWNER) == 0

    run_on(backend, check)


def test_recent_events_are_the_owner_s_and_newer_than_the_one_named() -> None:
    feed = Feed()
    for number, owner in enumerate([OWNER, STRANGER, OWNER], start=1):
        feed.publish("created", item(number, owner))
    first, second = feed.recent(OWNER)
    assert (first.item.id, second.item.id) == (1, 3)
    assert feed.recent(OWNER, after=first.id) == [second]


def test_only_so_many_events_are_remembered() -> None:
    feed = Feed(memory=2)
    for number in range(1, 4):
        feed.publish("created", item(number))
    assert [event.item.id for event in feed.recent(OWNER)] == [2, 3]


def test_ids_go_on_growing_after_a_restart() -> None:
    before = Feed()
    before.publish("created", item(1))
    time.sleep(0.001)
    after = Feed()
    after.publish("created", item(2))
    assert after.recent(OWNER)[0].id > before.recent(OWNER)[0].id
