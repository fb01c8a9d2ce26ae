"""Probes for whatever runs the service: is it alive, can it serve?"""

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import READ_ONLY, SessionFactoryDep

DATABASE_TIMEOUT = 2.0  # seconds

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The answer of a healthy service."""

    status: Literal["ok"] = "ok"


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
async def readyz(factory: SessionFactoryDep) -> Health:
    """Answer 200 when the database answers, 503 when it does not."""
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT), factory() as session:
            await session.connection(execution_options=READ_ONLY)
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
        logger.warning("Not ready: %s", repr(error))
        raise HTTPException(
            status.HTTP_503_SERVICE_UNAVAILABLE, "The database does not answer"
        ) from error
    return Health()
