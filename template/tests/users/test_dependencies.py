"""Call dependencies directly, as async functions."""

from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.requests import HTTPConnection
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import get_session
from app.settings import Settings
from app.users.dependencies import get_access_token, get_current_user
from app.users.models import User
from app.users.security import create_access_token
from tests.users.factories import UserFactory


def one_session(app: FastAPI) -> AbstractAsyncContextManager[AsyncSession]:
    request = HTTPConnection({"type": "http", "method": "POST"})
    return asynccontextmanager(get_session)(app.state.session_factory, request)


async def test_session_sees_the_database(app: FastAPI, user: User) -> None:
    async with one_session(app) as session:
        assert await session.get(User, user.id) is not None


async def test_session_rolls_back_what_is_not_committed(
    app: FastAPI, db_session: AsyncSession
) -> None:
    async with one_session(app) as session:
        session.add(UserFactory.build())
        await session.flush()
    assert await db_session.scalar(select(func.count()).select_from(User)) == 0


async def test_current_user_is_the_token_s(
    db_session: AsyncSession, settings: Settings, user: User
) -> None:
    access_token = await get_access_token(create_access_token(user.id, settings), settings)
    assert await get_current_user(access_token, db_session) is user


async def test_malformed_token_is_an_error(settings: Settings) -> None:
    with pytest.raises(HTTPException) as raised:
        await get_access_token("nonsense", settings)
    assert raised.value.status_code == 401
