"""Serve each request in its own task, as a server does."""

import asyncio
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass

from anyio import CancelScope
from starlette.types import Message, Receive, Scope, Send

from tests.harness.application import RunningApp, running
from tests.harness.isolation import Isolation
from tests.harness.leftovers import wait_for_closing
from tests.harness.patience import GRACE

__all__ = ["IsolatedApp", "RunningApp", "running"]

in_request: ContextVar[bool] = ContextVar("in_request", default=False)
"""Whether the running code serves a request. Requests that it sends do not wait for it."""


@dataclass(frozen=True)
class IsolatedApp:
    """The ASGI application for the clients of a test."""

    running: RunningApp
    isolation: Isolation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket, with a copy of the lifespan state."""
        scope = {**scope, "state": dict(self.running.lifespan_state)}
        async with AsyncExitStack() as turn:
            self.isolation.check_session()
            if scope["type"] == "http" and not in_request.get():
                await turn.enter_async_context(self.isolation.request())

            async def send_and_pass_on(message: Message) -> None:
                await send(message)
                if is_start_of_stream(message):  # which may never end
                    await turn.aclose()

            try:
                await self._serve(scope, receive, send_and_pass_on)
            except BaseException:  # such as a cancellation: SQLAlchemy closes without waiting
                with CancelScope(shield=True):
                    await wait_for_closing()
                raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve in a separate task, as a server does, so that context variables do not leak."""

        async def serve() -> BaseException | None:
            in_request.set(True)
            try:
                await self.running.app(scope, receive, send)
            except (Exception, SystemExit) as error:  # noqa: BLE001 (which would end the loop)
                return error
            return None

        task = asyncio.create_task(serve())
        try:
            error = await asyncio.shield(task)
        finally:
            with CancelScope(shield=True):
                if not task.done():  # the client has disconnected
                    task.cancel()
                    await asyncio.wait({task}, timeout=GRACE)
        if error is not None:
            raise error


def is_start_of_stream(message: Message) -> bool:
    """Return whether this message starts a response of unknown length."""
    headers = dict(message.get("headers", ()))
    return message["type"] == "http.response.start" and b"content-length" not in headers
