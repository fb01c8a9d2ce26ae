"""What keeps the requests of a test, and the test itself, out of one another's way."""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

from anyio import CancelScope
from fastapi import FastAPI
from sqlalchemy import event, inspect, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState

from tests.harness.transaction import SavepointSession, TestTransaction

inside_request: ContextVar[bool] = ContextVar("inside_request", default=False)


class Isolation(ABC):
    """How a test is kept apart from the others."""

    session_options: dict[str, Any]
    """What a session factory needs to work inside the test's database or transaction."""

    @abstractmethod
    def request(self) -> AbstractAsyncContextManager[None]:
        """Surround one HTTP request."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give the test's own session. What it selects is what the database holds now."""
        factory = async_sessionmaker(**{"expire_on_commit": False, **self.session_options})
        async with factory() as session:
            event.listen(session.sync_session, "do_orm_execute", overwrite_known_objects)
            yield session

    @contextmanager
    def installed(self, app: FastAPI) -> Iterator[None]:
        """Make all sessions of `app` work in here; restore its overrides and state afterwards."""
        factory: async_sessionmaker[AsyncSession] = app.state.session_factory
        before = factory.kw, dict(app.dependency_overrides), dict(app.state._state)
        factory.kw = {**factory.kw, **self.session_options}
        try:
            yield
        finally:
            factory.kw, app.dependency_overrides, app.state._state = before


class RolledBack(Isolation):
    """One transaction for the whole test; requests enter it one at a time."""

    def __init__(self, transaction: TestTransaction) -> None:
        self.transaction = transaction
        self.session_options = transaction.session_options
        self._turn = asyncio.Lock()
        self._session: AsyncSession | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give the test's own session, which each request finds committed and leaves up to date."""
        async with super().session() as self._session:
            yield self._session

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Wait for the request's turn.

        The lock is around whole requests: around sessions, a background task would wait for
        its own request. Raises AssertionError when the test has not committed what it wrote.
        """
        if inside_request.get():  # the application calls itself: the turn is its own
            yield
            return
        async with self._turn:
            await self._finish_reading()
            try:
                yield
            finally:
                with CancelScope(shield=True):  # a request that timed out has to be cleared up too
                    await sessions_closed()
                    await self._reload()

    async def _finish_reading(self) -> None:
        session = self._session
        if session is not None:
            assert isinstance(session.sync_session, SavepointSession)
            unflushed = [*session.new, *session.deleted, *filter(session.is_modified, session.dirty)]
            if not unflushed and not session.sync_session.has_pending_writes:
                await session.commit()  # ends the savepoint of what it read
        if self.transaction.pending_writes or (session is not None and unflushed):
            raise AssertionError(
                "A request starts while the test has written something that is not committed, "
                "which the application could not see in production. "
                "Call `await db_session.commit()` before the request."
            )

    async def _reload(self) -> None:
        if self._session is not None:
            await reload_known_objects(self._session)
            await self._session.commit()


class OwnDatabase(Isolation):
    """A database for the test alone: real commits, a real pool, requests side by side."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.session_options = {"bind": engine}

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Do nothing: the database itself keeps requests apart."""
        yield


def overwrite_known_objects(state: ORMExecuteState) -> None:
    """Let a SELECT bring objects that the session knows already up to date."""
    if state.is_select and not state.is_column_load and not state.is_relationship_load:
        state.update_execution_options(populate_existing=True)


async def reload_known_objects(session: AsyncSession) -> None:
    """Bring all objects of `session` up to date; let go of those that the database lost."""
    known: defaultdict[type[Any], dict[tuple[Any, ...], Any]] = defaultdict(dict)
    for instance in session:
        known[type(instance)][inspect(instance).identity] = instance
    for model, instances in known.items():
        key = tuple_(*inspect(model).primary_key)
        found = await session.scalars(select(model).where(key.in_(instances)))
        found_keys = {inspect(instance).identity for instance in found.unique()}
        for gone in instances.keys() - found_keys:
            session.expunge(instances[gone])


async def sessions_closed() -> None:
    """Wait until the sessions of a cancelled request are closed: SQLAlchemy does so in tasks."""
    closing = [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "AsyncSession.close"
    ]
    if closing:
        await asyncio.wait(closing)
