"""Access tokens: which are accepted, and for how long."""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from time_machine import TimeMachineFixture

from app.settings import Settings
from app.users.models import User
from app.users.security import ALGORITHM, TOKEN_TYPE, create_access_token
from tests.http_client import AsyncClient
from tests.users.fixtures import ClientFor

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DEEP = f"{urlsafe_b64encode(b'[' * 30_000).decode()}.e30.e30"

Sign = Callable[..., str]


@pytest.fixture
def lifetime(settings: Settings) -> timedelta:
    """How long an access token is valid."""
    return timedelta(minutes=settings.access_token_minutes)


@pytest.fixture
def sign(settings: Settings, user: User) -> Sign:
    """Signs an access token of the user with changed claims; None leaves a claim out."""

    def sign(
        changes: dict[str, Any] | None = None,
        *,
        key: str | None = settings.secret_key.get_secret_value(),
        algorithm: str = ALGORITHM,
        typ: str | None = TOKEN_TYPE,
    ) -> str:
        claims = {
            "iss": settings.access_token_issuer,
            "aud": settings.access_token_audience,
            "sub": str(user.id),
            "iat": datetime.now(UTC),
            "exp": datetime.now(UTC) + timedelta(hours=1),
            **(changes or {}),
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key, algorithm, headers={"typ": typ})

    return sign


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


async def test_token_signed_with_another_key_is_refused(client: AsyncClient, sign: Sign) -> None:
    assert await status_with(client, sign(key="x" * 32)) == 401


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "iat", "exp"])
async def test_token_that_lacks_a_claim_is_refused(
    client: AsyncClient, sign: Sign, claim: str
) -> None:
    assert await status_with(client, sign()) == 200
    assert await status_with(client, sign({claim: None})) == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "another service"},
        {"aud": "another service"},
        {"aud": ["another service"]},
        {"iat": NOON},
        {"exp": 10**30},
        {"sub": "ada"},
        {"sub": 1},
        {"sub": "0"},
        {"sub": "-1"},
        {"sub": str(2**31)},
        {"sub": str(2**63)},
        {"sub": "9" * 5000},
    ],
)
async def test_token_that_claims_something_else_is_refused(
    client: AsyncClient, sign: Sign, claims: dict[str, Any]
) -> None:
    assert await status_with(client, sign(claims)) == 401


@pytest.mark.parametrize("token_type", [None, "JWT", "confirmation+jwt"])
async def test_token_for_another_purpose_is_refused(
    client: AsyncClient, sign: Sign, token_type: str | None
) -> None:
    assert await status_with(client, sign(typ=token_type)) == 401


async def test_token_without_a_signature_is_refused(client: AsyncClient, sign: Sign) -> None:
    assert await status_with(client, sign(key=None, algorithm="none")) == 401


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_token_by_another_algorithm_is_refused(client: AsyncClient, sign: Sign) -> None:
    assert await status_with(client, sign(algorithm="HS512")) == 401


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", DEEP])
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
