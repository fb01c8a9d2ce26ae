"""Taking turns: savepoints on one connection have to be nested, so one works at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar


class Participant:
    """Who works in a test's transaction: the test itself, a request, a WebSocket."""

    def __init__(self) -> None:
        self.engagements = 0  # the request as a whole, and each transaction of a session
        self.requests = 0  # more than one where the application calls itself


served: ContextVar[Participant | None] = ContextVar("served", default=None)
"""The request or WebSocket that the running code serves; None in the test itself."""


class Turns:
    """Lets one participant work at a time; what it begins within its turn may be nested."""

    def __init__(self, make_room: Callable[[], Awaitable[None]]) -> None:
        """`make_room` is awaited when somebody has to wait, and may end the current turn."""
        self.test = Participant()
        self.current: Participant | None = None
        self._make_room = make_room
        self._changed = asyncio.Event()

    async def begin(self, who: Participant) -> None:
        """Wait until nobody but `who` is at work."""
        while self.current not in {None, who}:
            await self._make_room()
            if self.current not in {None, who}:
                self._changed.clear()
                await self._changed.wait()
        self.current = who

    def notice(self) -> None:
        """Let those who wait see whether there is room now."""
        self._changed.set()

    def engage(self, who: Participant) -> None:
        """Keep the turn until `who` has disengaged as often as it has engaged."""
        who.engagements += 1

    def disengage(self, who: Participant) -> None:
        """Pass the turn on, if this was the last that `who` kept it for."""
        who.engagements -= 1
        if who.engagements == 0 and self.current is who:
            self.current = None
            self.notice()
