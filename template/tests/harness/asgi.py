"""The application as a server would run it: lifespan, state, a task for each request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anyio import create_task_group
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from tests.harness.isolation import Isolation
from tests.harness.turns import Participant, served

being_served: set[asyncio.Task[Any]] = set()
"""The tasks that wait for a request or a WebSocket to be served."""


@dataclass(frozen=True)
class RunningApp:
    """An application in its lifespan, and what the lifespan yielded."""

    app: FastAPI
    lifespan_state: dict[str, Any]


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[RunningApp]:
    """Run the lifespan of `app`. What it raises, at start or at stop, is raised here."""
    async with app.router.lifespan_context(app) as state:
        yield RunningApp(app, dict(state or {}))


@dataclass(frozen=True)
class IsolatedApp:
    """The ASGI application that the clients of a test call."""

    running: RunningApp
    isolation: Isolation
    endless_streams: bool = False
    """Whether a streamed response lets the next request begin, as one that never ends has to."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one WebSocket, with a copy of the lifespan's state."""
        scope = {**scope, "state": dict(self.running.lifespan_state)}
        who = served.get() or Participant()  # within a request, the application calls itself
        if scope["type"] == "http":
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(self.isolation.request(who))

                async def send_and_pass_on(message: Message) -> None:
                    await send(message)
                    if self.endless_streams and is_start_of_stream(message):
                        await turn.aclose()

                await self._serve(who, scope, receive, send_and_pass_on)
        else:
            await self._serve(who, scope, receive, send)

    async def _serve(self, who: Participant, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve in a task of its own, as a server does, so that no context variable gets out."""
        error: Exception | None = None

        async def serve() -> None:
            nonlocal error
            served.set(who)
            try:
                await self.running.app(scope, receive, send)
            except Exception as raised:  # noqa: BLE001 (the task group would wrap it)
                error = raised

        caller = asyncio.current_task()
        assert caller is not None
        being_served.add(caller)
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(serve)
        finally:
            being_served.discard(caller)
        if error is not None:
            raise error


def is_start_of_stream(message: Message) -> bool:
    """Say whether a response begins here whose length is not known yet."""
    headers = dict(message.get("headers", ()))
    return message["type"] == "http.response.start" and b"content-length" not in headers
