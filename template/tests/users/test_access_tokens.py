"""Access tokens: which are taken, and for how long."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from time_machine import TimeMachineFixture

from app.settings import Settings
from app.users.models import User
from app.users.security import ALGORITHM, create_access_token
from tests.http_client import AsyncClient
from tests.users.fixtures import ClientFor

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def lifetime(settings: Settings) -> timedelta:
    """How long an access token is valid."""
    return timedelta(minutes=settings.access_token_minutes)


async def status_with(client: AsyncClient, token: str) -> int:
    response = await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})
    return response.status_code


async def test_token_is_valid_until_its_last_second(
    client_for: ClientFor, user: User, time_machine: TimeMachineFixture, lifetime: timedelta
) -> None:
    time_machine.move_to(NOON, tick=False)
    client = await client_for(user)
    time_machine.move_to(NOON + lifetime - timedelta(seconds=1), tick=False)
    assert (await client.get("/users/me")).status_code == 200


async def test_expired_token_is_refused(
    client_for: ClientFor, user: User, time_machine: TimeMachineFixture, lifetime: timedelta
) -> None:
    time_machine.move_to(NOON, tick=False)
    client = await client_for(user)
    time_machine.move_to(NOON + lifetime, tick=False)
    assert (await client.get("/users/me")).status_code == 401


async def test_token_signed_with_another_key_is_refused(client: AsyncClient, user: User) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    forged = jwt.encode({"sub": str(user.id), "exp": expires_at}, "x" * 32, ALGORITHM)
    assert await status_with(client, forged) == 401


@pytest.mark.parametrize("missing", ["sub", "exp"])
async def test_token_that_lacks_a_claim_is_refused(
    client: AsyncClient, settings: Settings, user: User, missing: str
) -> None:
    claims = {"sub": str(user.id), "exp": datetime.now(UTC) + timedelta(hours=1)}
    del claims[missing]
    token = jwt.encode(claims, settings.secret_key.get_secret_value(), ALGORITHM)
    assert await status_with(client, token) == 401


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
async def test_malformed_token_is_refused(client: AsyncClient, token: str) -> None:
    assert await status_with(client, token) == 401


async def test_token_of_a_deleted_user_is_refused(
    client: AsyncClient, app: FastAPI, db_session: AsyncSession, user: User
) -> None:
    token = create_access_token(user.id, app.state.settings)
    assert await status_with(client, token) == 200
    await db_session.delete(user)
    await db_session.commit()
    assert await status_with(client, token) == 401
