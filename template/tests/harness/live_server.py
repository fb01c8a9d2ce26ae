"""A real server on a loopback port, in the event loop of the test."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

SHUTDOWN_TIMEOUT = 2  # seconds that requests have to end after the test


class Server(uvicorn.Server):
    """A server that leaves signals to pytest and reports when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.told_to_stop = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and report it."""
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        """Serve until told to stop, without uvicorn's check every 0.1 seconds."""
        await self.on_tick(0)
        await self.told_to_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end, and cancel those that take too long; uvicorn would wait for them."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if requests := set(self.server_state.tasks):
            _, late = await asyncio.wait(requests, timeout=SHUTDOWN_TIMEOUT)
            for request in late:
                request.cancel()


@asynccontextmanager
async def serve(app: ASGIApp) -> AsyncIterator[str]:
    """Serve `app` without its lifespan, and yield the URL; stop afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(uvicorn.Config(app, lifespan="off", log_config=None))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            await server.ready.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.told_to_stop.set()
