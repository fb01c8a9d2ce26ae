"""Sign-up: the response, and the rows in the database."""

import asyncio
from datetime import timedelta

import pytest
from dirty_equals import IsNow, IsPositiveInt
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from syrupy.assertion import SnapshotAssertion

from app.users.models import User
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD, UserFactory

ADA = {"email": "ada@example.com", "password": PASSWORD}


async def test_sign_up_writes_one_user(client: AsyncClient, db_session: AsyncSession) -> None:
    response = await client.post("/users", json=ADA)
    assert response.status_code == 201
    user = (await db_session.scalars(select(User))).one()
    assert (user.id, user.email) == (response.json()["id"], "ada@example.com")


async def test_sign_up_answers_with_the_account_and_no_secret(client: AsyncClient) -> None:
    response = await client.post("/users", json=ADA)
    assert response.json() == {
        "id": IsPositiveInt,
        "email": "ada@example.com",
        "created_at": IsNow(iso_string=True, tz="UTC", delta=timedelta(seconds=30)),
    }


async def test_password_is_not_stored_in_clear(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    await client.post("/users", json=ADA)
    stored = (await db_session.scalars(select(User.password_hash))).one()
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored


async def test_address_is_stored_in_lower_case(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    await client.post("/users", json={**ADA, "email": "Ada@Example.com"})
    assert list(await db_session.scalars(select(User.email))) == ["ada@example.com"]


@pytest.mark.parametrize("email", ["ada@example.com", "ADA@example.com"])
async def test_address_that_has_an_account_is_a_conflict(
    client: AsyncClient, user_factory: type[UserFactory], email: str
) -> None:
    await user_factory.create_async(email="ada@example.com")
    response = await client.post("/users", json={**ADA, "email": email})
    assert response.status_code == 409


async def test_conflict_leaves_the_account_as_it_was(client: AsyncClient, user: User) -> None:
    password_hash = user.password_hash
    await client.post("/users", json={"email": user.email, "password": "another password"})
    assert user.password_hash == password_hash


@pytest.mark.committed
async def test_one_of_several_racing_sign_ups_wins(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    responses = await asyncio.gather(*(client.post("/users", json=ADA) for _ in range(3)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409]
    assert len((await db_session.scalars(select(User))).all()) == 1


@pytest.mark.parametrize(
    "email",
    [
        "ada",
        "ada@example.com\r\nBcc: bob@example.com",
        "ada@example.com, bob@example.com",
        "ada\0@example.com",
        f"{'a' * 250}@example.com",
    ],
)
async def test_malformed_address_is_refused(client: AsyncClient, email: str) -> None:
    response = await client.post("/users", json={**ADA, "email": email})
    assert response.status_code == 422


@pytest.mark.parametrize("password", ["a" * 11, "a" * 129, "a" * 1_000_000, r"\ud800" * 12])
async def test_password_that_cannot_be_one_is_refused(client: AsyncClient, password: str) -> None:
    response = await client.post(
        "/users",
        content=f'{{"email": "ada@example.com", "password": "{password}"}}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert password not in response.text


async def test_error_bodies_stay_as_they_are(
    client: AsyncClient, user: User, snapshot: SnapshotAssertion
) -> None:
    client.headers["X-Request-ID"] = "the-same"
    incomplete = await client.post("/users", json={"email": "ada@example.com"})
    taken = await client.post("/users", json={**ADA, "email": user.email})
    assert {"incomplete": incomplete.json(), "taken": taken.json()} == snapshot
