"""Health checks: is the service alive, and is it ready?"""

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter, HTTPException, status
from fastapi.requests import HTTPConnection
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.core.database import READ_ONLY, SessionFactoryDep, core_state
from app.core.migrations import is_behind, read_revisions
from app.core.unavailable import NO_ANSWER, reason

DATABASE_TIMEOUT = 2.0  # seconds
NOT_MIGRATED = "The database lacks migrations"
STOPPING = "The service is stopping"

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The answer of a healthy service."""

    status: Literal["ok"] = "ok"


class Readiness:
    """Checks whether the database answers and is migrated."""

    def __init__(self) -> None:
        self._check: asyncio.Task[str | None] | None = None

    async def check(self, factory: async_sessionmaker[AsyncSession]) -> str | None:
        """Return why the service is not ready, or None, within DATABASE_TIMEOUT.

        Only one query runs at a time: if the database hangs, the next caller waits for the same
        query. A cancelled query is not awaited, because it can hang too.
        """
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(ask(factory))
        check = self._check
        await asyncio.wait({check}, timeout=DATABASE_TIMEOUT)
        if not check.done():
            logger.warning("Not ready: no answer within %s seconds", DATABASE_TIMEOUT)
            check.cancel()
        return NO_ANSWER if check.cancelled() or not check.done() else check.result()


async def ask(factory: async_sessionmaker[AsyncSession]) -> str | None:
    """Return why the service is not ready, or None if the database answers and is migrated."""
    try:
        async with factory() as session:
            connection = await session.connection(execution_options=READ_ONLY)
            if not await connection.run_sync(is_behind, read_revisions()):
                return None
    except (SQLAlchemyError, OSError) as error:
        logger.warning("Not ready: %s", reason(error))
        return NO_ANSWER
    logger.warning("Not ready: %s", NOT_MIGRATED)
    return NOT_MIGRATED


@router.get("/livez")
async def livez() -> Health:
    """Answer as long as the process does."""
    return Health()


@router.get(
    "/readyz",
    responses={
        status.HTTP_503_SERVICE_UNAVAILABLE: {"description": "The database does not answer"}
    },
)
async def readyz(connection: HTTPConnection, factory: SessionFactoryDep) -> Health:
    """Answer 200 when the database answers, 503 when it does not."""
    state = core_state(connection)
    obstacle = STOPPING if state.stopping.has_begun else await state.readiness.check(factory)
    if obstacle is not None:
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, obstacle)
    return Health()
