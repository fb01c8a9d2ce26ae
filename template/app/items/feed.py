"""A live feed: what happens to a user's items, told to whoever listens.

It reaches the listeners of this process. With several processes, publish through the
database or a message broker instead.
"""

import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count

from anyio import EndOfStream, WouldBlock, create_memory_object_stream, fail_after
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastapi import status

from app.core.problems import ProblemError
from app.items.schemas import ItemEvent, ItemEventKind, ItemRead


class TooManyStreamsError(ProblemError):
    """The user follows the feed too often already."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    type = "urn:problem-type:too-many-streams"
    title = "Too many streams of the account are open"


class Feed:
    """Passes events on to the followers of an owner, and remembers the last ones.

    `memory` is how many events are kept, those of all owners together. `backlog` is how many
    a follower may leave unread: whoever has more is dropped, and does not hold up the others.
    `followers` is how many an owner may have at once.
    """

    def __init__(self, memory: int = 1000, backlog: int = 100, followers: int = 10) -> None:
        # From the clock on: the ids of a process are greater than those of the one before.
        self._ids = count(time.time_ns() // 1000)
        self._recent: deque[ItemEvent] = deque(maxlen=memory)
        self._backlog = backlog
        self._limit = followers
        self._followers: defaultdict[int, set[MemoryObjectSendStream[ItemEvent]]] = defaultdict(set)

    def publish(self, kind: ItemEventKind, item: ItemRead) -> None:
        """Tell the followers of the item's owner. Never waits for them."""
        event = ItemEvent(id=next(self._ids), kind=kind, item=item)
        self._recent.append(event)
        for follower in tuple(self._followers.get(item.owner_id, ())):
            try:
                follower.send_nowait(event)
            except WouldBlock:
                self._drop(item.owner_id, follower)

    def recent(self, owner_id: int, after: int = 0) -> list[ItemEvent]:
        """Return the remembered events of an owner that are newer than the one with id `after`."""
        return [
            event for event in self._recent if event.item.owner_id == owner_id and event.id > after
        ]

    @contextmanager
    def follow(self, owner_id: int) -> Iterator[MemoryObjectReceiveStream[ItemEvent]]:
        """Give the stream of the owner's events from now on. It ends when too many are unread.

        Raises TooManyStreamsError.
        """
        if self.count_followers(owner_id) >= self._limit:
            raise TooManyStreamsError
        follower, events = create_memory_object_stream[ItemEvent](self._backlog)
        self._followers[owner_id].add(follower)
        try:
            with events:
                yield events
        finally:
            self._drop(owner_id, follower)

    def _drop(self, owner_id: int, follower: MemoryObjectSendStream[ItemEvent]) -> None:
        """End the follower's stream, after what is still unread."""
        follower.close()
        self._followers[owner_id].discard(follower)
        if not self._followers[owner_id]:
            del self._followers[owner_id]

    def count_followers(self, owner_id: int) -> int:
        """Say how many follow the owner's events."""
        return len(self._followers.get(owner_id, ()))


async def events_until(
    moment: datetime, events: MemoryObjectReceiveStream[ItemEvent]
) -> AsyncIterator[ItemEvent]:
    """Yield the events of a stream as they come. Raises TimeoutError at the `moment`."""
    while True:
        with fail_after((moment - datetime.now(UTC)).total_seconds()):
            try:
                event = await events.receive()
            except EndOfStream:
                return
        yield event
