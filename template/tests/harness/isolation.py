"""What keeps the requests of a test, and the test itself, out of one another's way."""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from anyio import CancelScope
from fastapi import FastAPI
from sqlalchemy import event, inspect, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState

from app.core.database import READ_ONLY
from tests.harness.session import SavepointSession
from tests.harness.transaction import SharedTransaction
from tests.harness.turns import Participant, served


class Isolation(ABC):
    """How a test is kept apart from the others."""

    session_options: dict[str, Any]
    """What a session factory needs to work inside the test's database or transaction."""

    @property
    def own_session_options(self) -> dict[str, Any]:
        """The same for the test's own session."""
        return self.session_options

    @abstractmethod
    def request(self, who: Participant) -> AbstractAsyncContextManager[None]:
        """Surround one HTTP request, which is `who`."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give the test's own session. What it selects is what the database holds now."""
        factory = async_sessionmaker(**{"expire_on_commit": False, **self.own_session_options})
        async with factory() as session:
            event.listen(session.sync_session, "do_orm_execute", overwrite_known_objects)
            yield session

    @contextmanager
    def installed(self, app: FastAPI) -> Iterator[None]:
        """Make all sessions of `app` work in here; undo afterwards what a test did to `app`."""
        factory: async_sessionmaker[AsyncSession] = app.state.session_factory
        before = factory.kw, dict(app.dependency_overrides), dict(app.state._state)
        routes = list(app.router.routes)
        factory.kw = {**factory.kw, **self.session_options}
        try:
            yield
        finally:
            factory.kw, app.dependency_overrides, vars(app.state)["_state"] = before
            app.router.routes[:] = routes


class RolledBack(Isolation):
    """One transaction for the whole test; requests enter it one at a time."""

    def __init__(self, transaction: SharedTransaction) -> None:
        self.session_options = transaction.session_options
        self._transaction = transaction
        self._turns = transaction.turns
        self._session: AsyncSession | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give the test's own session, which is up to date after each request."""
        async with super().session() as self._session:
            yield self._session
        self._session = None

    @asynccontextmanager
    async def request(self, who: Participant) -> AsyncIterator[None]:
        """Give `who` a turn that lasts as long as the request, its background tasks included.

        Raises AssertionError when the test has written something and not committed it.
        """
        if self._test_has_uncommitted_writes():
            raise AssertionError(
                "A request starts while the test has written something that is not committed, "
                "which the application could not see in production. "
                "Call `await db_session.commit()` before the request."
            )
        await self._turns.begin(who)
        self._turns.engage(who)
        who.requests += 1
        try:
            yield
        finally:
            with CancelScope(shield=True):  # what was cancelled has to be cleared up, too
                await sessions_closed()
                await self._reload(who)
            who.requests -= 1
            self._turns.disengage(who)

    def _test_has_uncommitted_writes(self) -> bool:
        sessions = {s for s in self._transaction.open_sessions if s.opened_by is self._turns.test}
        if self._session is not None:
            assert isinstance(self._session.sync_session, SavepointSession)
            sessions.add(self._session.sync_session)
        return not all(session.is_clean for session in sessions)

    async def _reload(self, who: Participant) -> None:
        if self._session is None or not self._session.identity_map:
            return
        token = served.set(who)
        try:
            await reload_known_objects(self._session)
            await self._session.commit()
        finally:
            served.reset(token)


class OwnDatabase(Isolation):
    """A database for the test alone: real commits, a real pool, requests side by side."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.session_options = {"bind": engine}

    @property
    def own_session_options(self) -> dict[str, Any]:
        """Let the application write on SQLite while the test holds what it has read."""
        return {"bind": self.engine.execution_options(**READ_ONLY)}

    @asynccontextmanager
    async def request(self, who: Participant) -> AsyncIterator[None]:
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
