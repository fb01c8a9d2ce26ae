"""The application as a server would run it: lifespan, state, a task for each request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anyio import create_task_group
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from tests.harness.isolation import Isolation, inside_request

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one WebSocket, with a copy of the lifespan's state."""
        scope = {**scope, "state": dict(self.running.lifespan_state)}
        if scope["type"] == "http":
            async with self.isolation.request():
                await self._serve(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve in a task of its own, as a server does, so that no context variable gets out."""
        error: Exception | None = None

        async def serve() -> None:
            nonlocal error
            inside_request.set(True)
            try:
                await self.running.app(scope, receive, send)
            except Exception as raised:  # which the task group would wrap
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
