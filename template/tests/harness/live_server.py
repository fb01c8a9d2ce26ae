"""A real server on a loopback port, in the event loop of the test."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

SHUTDOWN_TIMEOUT = 2  # seconds for connections that are still open after the test


class Server(uvicorn.Server):
    """A server that leaves signals to pytest and reports when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and report it."""
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serve(app: ASGIApp) -> AsyncIterator[str]:
    """Serve `app` without its lifespan, and yield the URL; stop afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(
            uvicorn.Config(
                app, lifespan="off", log_config=None, timeout_graceful_shutdown=SHUTDOWN_TIMEOUT
            )
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            await server.ready.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
