"""The welcome e-mail: a background task, and a dependency that tests replace."""

from unittest.mock import ANY, AsyncMock, patch

import pytest
from dirty_equals import IsNow
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.users import dependencies, service
from app.users.dependencies import get_email_sender
from app.users.email import EmailNotSentError, EmailSender
from app.users.models import User
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD

ADA = {"email": "ada@example.com", "password": PASSWORD}


async def test_sign_up_schedules_the_welcome(client: AsyncClient) -> None:
    # The router looks `welcome` up in the module for each request, so a patch is seen.
    with patch.object(service, "welcome", autospec=True) as welcome:
        response = await client.post("/users", json=ADA)
    welcome.assert_awaited_once_with(response.json()["id"], "ada@example.com", ANY, ANY)


async def test_welcome_has_gone_out_when_the_client_has_its_response(
    client: AsyncClient, email_sender: AsyncMock
) -> None:
    await client.post("/users", json=ADA)
    email_sender.send.assert_awaited_once_with("ada@example.com", "Welcome", ANY)


async def test_sign_up_that_is_refused_welcomes_nobody(
    client: AsyncClient, email_sender: AsyncMock, user: User
) -> None:
    await client.post("/users", json={**ADA, "email": user.email})
    email_sender.send.assert_not_awaited()


async def test_welcome_writes_its_time_to_the_database(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    await client.post("/users", json=ADA)
    assert await db_session.scalar(select(User.welcomed_at)) == IsNow(tz="UTC", delta=30)


async def test_sign_up_survives_a_mail_server_that_fails(
    client: AsyncClient, email_sender: AsyncMock, caplog: pytest.LogCaptureFixture
) -> None:
    email_sender.send.side_effect = EmailNotSentError("the server is on fire")
    response = await client.post("/users", json=ADA)
    assert response.status_code == 201
    assert "the server is on fire" in caplog.text


async def test_welcome_that_failed_is_not_noted(
    client: AsyncClient, email_sender: AsyncMock, db_session: AsyncSession
) -> None:
    email_sender.send.side_effect = EmailNotSentError
    await client.post("/users", json=ADA)
    assert (await db_session.scalars(select(User))).one().welcomed_at is None


async def test_error_that_nobody_expects_is_raised_in_the_test(
    client: AsyncClient, email_sender: AsyncMock
) -> None:
    email_sender.send.side_effect = ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        await client.post("/users", json=ADA)


@pytest.mark.parametrize("run", [1, 2])
async def test_override_is_gone_with_its_test(app: FastAPI, run: int) -> None:
    assert app.dependency_overrides == {}
    app.dependency_overrides[get_email_sender] = lambda: AsyncMock(spec=EmailSender)


async def test_mock_in_place_of_a_dependency_is_taken_for_parameters(
    app: FastAPI, client: AsyncClient
) -> None:
    app.dependency_overrides[get_email_sender] = AsyncMock(spec=EmailSender)
    response = await client.post("/users", json=ADA)
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [
        ["query", "args"],
        ["query", "kwargs"],
    ]


async def test_patch_of_a_dependency_is_not_seen(
    client: AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    # FastAPI has held the function itself since the router was made.
    with patch.object(dependencies, "get_email_sender") as patched:
        await client.post("/users", json=ADA)
    patched.assert_not_called()
    assert "not sent to ada@example.com" in capsys.readouterr().out
