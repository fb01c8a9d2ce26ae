"""Wake-ups for code that waits for a change, in this process and in others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest
from fastapi import FastAPI
from sqlalchemy import QueuePool, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from app.core import notifications as module
from app.core.database import create_engine
from app.core.notifications import Notifications, WakeUp, open_driver_connection
from app.settings import Settings
from tests.patterns.backends import on_both_backends, run_on

TOPIC, OTHER = "a topic", "another topic"


def engine_of(driver: str) -> Any:
    """Make a fake engine with this driver."""
    return SimpleNamespace(driver=driver, dispose=AsyncMock())


@pytest.fixture
def notifications(app: FastAPI) -> Notifications:
    """The application's notifications."""
    notifications: Notifications = app.state.notifications
    return notifications


@pytest.fixture
def factory(app: FastAPI) -> async_sessionmaker[AsyncSession]:
    """The application's session factory."""
    factory: async_sessionmaker[AsyncSession] = app.state.session_factory
    return factory


async def woken(subscriber: WakeUp) -> bool:
    """Wait for the next wake-up."""
    with anyio.fail_after(5):
        await subscriber.wait()
    return True


async def is_asleep(subscriber: WakeUp) -> bool:
    """Return whether a subscriber still waits when all other tasks are idle."""
    async with anyio.create_task_group() as tasks:
        was_woken = False

        async def wait() -> None:
            nonlocal was_woken
            await subscriber.wait()
            was_woken = True

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return not was_woken


# ---- In this process ----


@on_both_backends
def test_each_subscriber_of_the_topic_is_woken(backend: str) -> None:
    async def check() -> None:
        notifications = Notifications(engine_of("another"))
        with (
            notifications.subscribe(TOPIC) as one,
            notifications.subscribe(TOPIC) as two,
            notifications.subscribe(OTHER) as other,
        ):
            notifications.wake(TOPIC)
            assert await woken(one)
            assert await woken(two)
            assert await is_asleep(one)  # until it is woken again
            assert await is_asleep(other)
        notifications.wake(TOPIC)  # nobody

    run_on(backend, check)


async def test_commit_wakes_whom_it_concerns(factory: async_sessionmaker[AsyncSession]) -> None:
    notifications = Notifications(engine_of("another"))
    with notifications.subscribe(TOPIC) as subscriber, notifications.subscribe(OTHER) as other:
        async with factory() as session:
            await notifications.notify(session, TOPIC)
            async with session.begin_nested():
                await session.execute(text("SELECT 1"))
            assert await is_asleep(subscriber)
            await session.commit()
            assert await woken(subscriber)
            await session.execute(text("SELECT 1"))
            await session.commit()
        assert await is_asleep(subscriber)
        assert await is_asleep(other)


# ---- In other processes ----


class Server:
    """A server whose connections notify, break, or cannot be made, as the test wants."""

    def __init__(self) -> None:
        self.connections = 0
        self.is_away = self.is_silent = False
        self.notify: Callable[[str], None] = lambda _: None
        self.end: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def connect(self, _: AsyncEngine) -> AsyncIterator["Server"]:
        """Replace `open_driver_connection`."""
        if self.is_away:
            self.is_away = False
            raise ConnectionRefusedError("away")
        self.connections += 1
        try:
            yield self
        finally:
            self.connections -= 1

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        self.notify = lambda topic: callback(self, 1, channel, topic)

    def add_termination_listener(self, callback: Callable[..., None]) -> None:
        self.end = lambda: callback(self)

    async def execute(self, _: str, **__: float) -> None:
        if self.is_silent:
            raise TimeoutError("silent for too long")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server whose connection is tested often."""
    server = Server()
    monkeypatch.setattr(module, "open_driver_connection", server.connect)
    monkeypatch.setattr(module, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(module, "HEARTBEAT", 0.001)
    return server


@pytest.fixture
async def listener(server: Server) -> AsyncIterator[Notifications]:
    """Notifications that listen to the server."""

    notifications = Notifications(engine_of("asyncpg"))
    async with notifications.listening():
        yield notifications
    assert server.connections == 0


async def test_all_subscribers_share_a_connection(listener: Notifications, server: Server) -> None:
    assert server.connections == 0
    with listener.subscribe(TOPIC) as one, listener.subscribe(OTHER) as two:
        assert await woken(one)  # for what happened before it connected
        assert await woken(two)
        assert server.connections == 1
        server.notify(OTHER)
        assert await woken(two)
        assert await is_asleep(one)
    while server.connections:  # noqa: ASYNC110
        await asyncio.sleep(0)


def lose(server: Server) -> None:
    """End the connection; the next attempt to connect fails."""
    server.is_silent = server.is_away = True
    server.end()


def fall_silent(server: Server) -> None:
    """Let the server send nothing more, though the connection stays open."""
    server.is_silent = True


@pytest.mark.parametrize("happens", [lose, fall_silent])
async def test_lost_connection_is_replaced(
    listener: Notifications,
    server: Server,
    happens: Callable[[Server], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listener.subscribe(TOPIC) as subscriber:
        assert await woken(subscriber)
        happens(server)
        while server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        server.is_silent = False
        assert await woken(subscriber)  # for what it may have missed
        server.notify(TOPIC)
        assert await woken(subscriber)
    assert "Notifications of other processes are late: silent for too long" in caplog.text


@pytest.mark.parametrize(("database", "statements"), [("sqlite", 0), ("postgresql", 1)])
async def test_only_postgresql_is_told(database: str, statements: int) -> None:
    bind = SimpleNamespace(dialect=SimpleNamespace(name=database))
    session: Any = SimpleNamespace(get_bind=lambda: bind, execute=AsyncMock(), info={})
    await Notifications(engine_of("asyncpg")).notify(session, TOPIC)
    assert session.execute.await_count == statements


async def test_other_drivers_do_not_listen(server: Server) -> None:
    notifications = Notifications(engine_of("another"))
    async with notifications.listening():
        with notifications.subscribe(TOPIC) as subscriber:
            assert await is_asleep(subscriber)


async def test_connection_of_the_driver_belongs_to_no_pool(settings: Settings) -> None:
    engine = create_engine(settings.database_url)
    async with open_driver_connection(engine) as connection:
        assert type(connection).__module__.startswith(engine.driver)
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedout() == 0
    await engine.dispose()


# ---- With a real server ----


@pytest.fixture
async def other_process(settings: Settings) -> AsyncIterator[Notifications]:
    """Notifications with their own connection, as in another process."""
    if not settings.database_url.startswith("postgresql"):
        pytest.skip("SQLite has no notifications")
    notifications = Notifications(create_engine(settings.database_url))
    async with notifications.listening():
        yield notifications


@pytest.mark.committed
async def test_commit_wakes_other_processes(
    other_process: Notifications,
    notifications: Notifications,
    factory: async_sessionmaker[AsyncSession],
) -> None:
    with other_process.subscribe(TOPIC) as subscriber:
        assert await woken(subscriber)  # the connection is made
        async with factory() as session:
            await notifications.notify(session, TOPIC)
            await session.commit()
        assert await woken(subscriber)


@pytest.mark.committed
async def test_connection_that_the_server_has_ended_is_replaced(
    other_process: Notifications,
    notifications: Notifications,
    factory: async_sessionmaker[AsyncSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = []

    @asynccontextmanager
    async def note_pid(engine: AsyncEngine) -> AsyncIterator[Any]:
        async with open_driver_connection(engine) as connection:
            pids.append(connection.get_server_pid())
            yield connection

    monkeypatch.setattr(module, "open_driver_connection", note_pid)
    with other_process.subscribe(TOPIC) as subscriber:
        assert await woken(subscriber)
        async with factory() as session:
            await session.execute(select(func.pg_terminate_backend(pids[0])))
            assert await woken(subscriber)  # for what it may have missed
            await notifications.notify(session, TOPIC)
            await session.commit()
        assert await woken(subscriber)
    assert len(pids) == 2
