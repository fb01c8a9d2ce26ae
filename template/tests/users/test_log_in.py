"""Log-in: exchange an address and a password for an access token."""

from unittest.mock import patch

import anyio
import pytest
from fastapi import FastAPI
from sqlalchemy import insert

from app.users.models import User
from app.users.security import Passwords
from tests.http_client import AsyncClient, Response
from tests.users.factories import PASSWORD


async def log_in(client: AsyncClient, email: str, password: str = PASSWORD) -> Response:
    return await client.post("/token", data={"username": email, "password": password})


async def test_token_of_a_log_in_opens_the_account(client: AsyncClient, user: User) -> None:
    token = (await log_in(client, user.email)).json()["access_token"]
    response = await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})
    assert response.json()["id"] == user.id


@pytest.mark.committed
async def test_log_in_does_not_wait_for_a_writer(
    app: FastAPI, client: AsyncClient, user: User
) -> None:
    async with app.state.session_factory() as writer:
        await writer.execute(insert(User), {"email": "b@example.com", "password_hash": ""})
        with anyio.fail_after(10):
            assert (await log_in(client, user.email)).status_code == 200


async def test_address_is_taken_in_any_case(client: AsyncClient, user: User) -> None:
    response = await log_in(client, user.email.upper())
    assert response.status_code == 200


async def test_wrong_password_is_refused(client: AsyncClient, user: User) -> None:
    response = await log_in(client, user.email, "not the password")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("email", ["nobody@example.com", "ada\0@example.com", "'; --"])
async def test_unknown_address_is_answered_like_a_wrong_password(
    client: AsyncClient, user: User, email: str
) -> None:
    client.headers["X-Request-ID"] = "the-same"
    unknown = await log_in(client, email)
    wrong = await log_in(client, user.email, "not the password")
    assert (unknown.status_code, unknown.json()) == (wrong.status_code, wrong.json())


async def test_unknown_address_takes_a_hash_as_well(client: AsyncClient) -> None:
    with patch.object(Passwords, "hash", autospec=True) as hash_password:
        await log_in(client, "nobody@example.com")
    hash_password.assert_awaited_once()


@pytest.mark.parametrize(("email", "password"), [("a" * 255, PASSWORD), ("ada", "a" * 1_000_000)])
async def test_what_no_account_can_have_is_refused(
    client: AsyncClient, email: str, password: str
) -> None:
    with patch.object(Passwords, "verify", autospec=True) as verify:
        response = await log_in(client, email, password)
    assert response.status_code == 422
    assert "aaaa" not in response.text
    verify.assert_not_awaited()


@pytest.mark.parametrize("field", ["username", "password"])
async def test_half_a_character_is_refused(client: AsyncClient, field: str) -> None:
    parts = {"username": "ada@example.com", "password": PASSWORD, field: r"\ud800"}
    body = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    # This charset can decode to text that UTF-8 cannot encode.
    headers = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    response = await client.post("/token", content=f"{body}--x--\r\n", headers=headers)
    assert response.status_code == 422
