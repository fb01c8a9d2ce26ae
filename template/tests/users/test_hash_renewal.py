"""A background task, which may get lost, renews a hash after a log-in."""

from unittest.mock import ANY, patch

import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.users import service
from app.users.models import User
from tests.http_client import AsyncClient, Response
from tests.users.factories import PASSWORD

OTHER_COST = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64),))


@pytest.fixture
async def old_user(user: User, db_session: AsyncSession) -> User:
    """A user whose password was hashed at a different cost than the settings require."""
    user.password_hash = OTHER_COST.hash(PASSWORD)
    await db_session.commit()
    return user


async def log_in(client: AsyncClient, user: User) -> Response:
    return await client.post("/token", data={"username": user.email, "password": PASSWORD})


async def test_log_in_schedules_the_renewal(client: AsyncClient, old_user: User) -> None:
    # The router looks up `renew_hash` in the module for each request, so a patch works.
    with patch.object(service, "renew_hash", autospec=True) as renew_hash:
        await log_in(client, old_user)
    renew_hash.assert_awaited_once_with(old_user.id, PASSWORD, ANY, ANY)


async def test_hash_is_renewed_when_the_client_has_its_response(
    client: AsyncClient, db_session: AsyncSession, old_user: User
) -> None:
    before = old_user.password_hash
    await log_in(client, old_user)
    assert await db_session.scalar(select(User.password_hash)) != before
    assert (await log_in(client, old_user)).status_code == 200


async def test_hash_of_today_is_kept(
    client: AsyncClient, db_session: AsyncSession, user: User
) -> None:
    before = user.password_hash
    await log_in(client, user)
    assert await db_session.scalar(select(User.password_hash)) == before


async def test_error_of_a_background_task_is_raised_in_the_test(
    client: AsyncClient, old_user: User
) -> None:
    failing = patch.object(service, "renew_hash", autospec=True, side_effect=ZeroDivisionError)
    with failing, pytest.raises(ZeroDivisionError):
        await log_in(client, old_user)
