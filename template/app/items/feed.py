"""A live feed: followers receive what happens to a user's items.

Events are rows, written in the transaction of the change that they describe. A commit wakes the
followers in all processes, and they read the new events, all in the same order. A follower that
connects again or reads slowly misses nothing that is still stored. On SQLite, a commit only wakes
followers in its own process.
"""

from asyncio import Lock
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta

from anyio import move_on_after
from fastapi import status
from sqlalchemy import delete, func, select
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.core.database import begin_reading
from app.core.notifications import Notifications, WakeUp
from app.core.problems import ProblemError
from app.core.unavailable import DatabaseUnavailableError
from app.items.models import ItemEvent, ItemEventKind
from app.items.schemas import ItemEventRead, ItemRead
from app.users.models import User

PAGE = 100
"""How many events are read at once."""
BATCH = 10_000
"""How many old events are deleted at once."""
RETRY = 5.0
"""Seconds until a follower tries to read again, if the database is down."""


class TooManyStreamsError(ProblemError):
    """The user already has too many open streams."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    type = "urn:problem-type:too-many-streams"
    title = "The account has too many open streams"


class Feed:
    """Stores events, and passes them on to the followers in this process.

    `limit` is how many followers an owner may have at once, in this process.
    """

    def __init__(
        self,
        notifications: Notifications,
        factory: async_sessionmaker[AsyncSession],
        limit: int = 10,
    ) -> None:
        self._notifications = notifications
        self._factory = factory
        self._limit = limit
        self._followers: Counter[int] = Counter()
        self._turn = Lock()  # followers read one at a time, so they need one connection

    async def publish(self, session: AsyncSession, kind: ItemEventKind, item: ItemRead) -> None:
        """Store an event in the transaction of `session`; wake followers when it is committed."""
        # The ids of an owner's events follow the order of their commits: each transaction waits
        # here until the previous one has ended. Otherwise a follower that has read an event could
        # miss one with a smaller id that is committed later.
        await session.execute(
            select(User.id).where(User.id == item.owner_id).with_for_update(key_share=True)
        )
        event = ItemEvent(owner_id=item.owner_id, kind=kind, item=item.model_dump(mode="json"))
        session.add(event)
        await self._notifications.notify(session, topic_of(item.owner_id))

    @asynccontextmanager
    async def follow(
        self, owner_id: int, after: int
    ) -> AsyncIterator[AsyncGenerator[ItemEventRead]]:
        """Yield the owner's events after the one with id `after`, as they come.

        Raises TooManyStreamsError.
        """
        if self.count_followers(owner_id) >= self._limit:
            raise TooManyStreamsError
        self._followers[owner_id] += 1
        try:
            with self._notifications.subscribe(topic_of(owner_id)) as wake_up:
                async with aclosing(self._follow(owner_id, after, wake_up)) as events:
                    yield events
        finally:
            self._followers[owner_id] -= 1
            if not self._followers[owner_id]:
                del self._followers[owner_id]

    async def _follow(
        self, owner_id: int, after: int, wake_up: WakeUp
    ) -> AsyncGenerator[ItemEventRead]:
        while True:
            try:
                page = await self._read(owner_id, after)
            except (DatabaseUnavailableError, PoolTimeoutError):
                with move_on_after(RETRY):
                    await wake_up.wait()
                continue
            for event in page:
                yield event
                after = event.id
            if len(page) < PAGE:
                await wake_up.wait()

    async def events(self, owner_id: int, after: int = 0) -> AsyncGenerator[ItemEventRead]:
        """Yield the owner's stored events after the one with id `after`."""
        while page := await self._read(owner_id, after):
            for event in page:
                yield event
                after = event.id

    async def _read(self, owner_id: int, after: int) -> list[ItemEventRead]:
        """Return the owner's next events after the one with id `after`."""
        newer = select(ItemEvent).where(ItemEvent.owner_id == owner_id, ItemEvent.id > after)
        async with self._turn, self._factory() as session:
            await begin_reading(session)
            events = await session.scalars(newer.order_by(ItemEvent.id).limit(PAGE))
            return [ItemEventRead.model_validate(event) for event in events]

    def count_followers(self, owner_id: int) -> int:
        """Return how many follow the owner's events in this process."""
        return self._followers[owner_id]


def topic_of(owner_id: int) -> str:
    """Return the topic of notifications about an owner's new events."""
    return f"item_events {owner_id}"


async def find_last_event_id(session: AsyncSession, owner_id: int) -> int:
    """Return the id of the owner's last event, or 0 if there is none."""
    last = await session.scalar(
        select(func.max(ItemEvent.id)).where(ItemEvent.owner_id == owner_id)
    )
    return last or 0


async def delete_old_events(
    factory: async_sessionmaker[AsyncSession], keep: timedelta = timedelta(days=7)
) -> int:
    """Delete the events that are older than `keep`; return how many.

    A follower that has been away for longer misses them.
    """
    old = ItemEvent.created_at < datetime.now(UTC) - keep
    batch = select(ItemEvent.id).where(old).limit(BATCH)  # so that no statement takes long
    statement = delete(ItemEvent).where(ItemEvent.id.in_(batch)).returning(ItemEvent.id)
    deleted = 0
    while True:
        async with factory() as session:
            ids = (await session.scalars(statement)).all()
            await session.commit()
        deleted += len(ids)
        if len(ids) < BATCH:
            return deleted


async def events_until(
    moment: datetime, events: AsyncGenerator[ItemEventRead]
) -> AsyncIterator[ItemEventRead]:
    """Yield `events` as they come, until `moment`."""
    while True:
        event = None
        with move_on_after((moment - datetime.now(UTC)).total_seconds()):
            event = await anext(events, None)
        if event is None:
            return
        yield event
