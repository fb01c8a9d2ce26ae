"""Run the application, and restore it after each test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker


@dataclass(frozen=True)
class RunningApp:
    """A started application, and what its lifespan yielded."""

    app: FastAPI
    lifespan_state: dict[str, Any]
    engine: AsyncEngine
    """The application's own."""

    @contextmanager
    def bound_to(
        self, engine: AsyncEngine, info: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """Bind the application's sessions to `engine`, and add `info` to theirs; restore both."""
        factory: async_sessionmaker[AsyncSession] = self.app.state.session_factory
        before = factory()
        factory.configure(bind=engine, info={**before.info, **(info or {})})
        try:
            yield
        finally:
            factory.configure(bind=before.bind, info=before.info)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the application and the lifespan state after a test."""
        app = self.app
        states = [vars(app), vars(app.router), vars(app.state), self.lifespan_state]
        restore = [remember(state) for state in states]
        app.middleware_stack = None  # rebuilt, so that the test can add middleware
        try:
            yield
        finally:
            for undo in restore:
                undo()


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[RunningApp]:
    """Run the lifespan of `app`. Raises the exceptions of its startup and shutdown."""
    async with app.router.lifespan_context(app) as state:
        engine = app.state.session_factory().bind
        for _ in range(100):  # until tasks of the lifespan have returned their connections
            if isinstance(engine.pool, QueuePool) and engine.pool.checkedout():
                await asyncio.sleep(0.01)
        yield RunningApp(app, dict(state or {}), engine)


def remember(value: object) -> Callable[[], None]:
    """Return a function that restores a dict, list or set, and those inside it.

    Other objects in it are not copied: only their classes know how.
    """
    if not isinstance(value, dict | list | set):
        return lambda: None
    before: Any = value.copy()
    inner = [remember(each) for each in (value.values() if isinstance(value, dict) else value)]

    def restore() -> None:
        value.clear()
        value.extend(before) if isinstance(value, list) else value.update(before)
        for undo in inner:
            undo()

    return restore
