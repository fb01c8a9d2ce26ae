"""Fixtures for users: accounts, and clients that are logged in."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.email import EmailSender
from app.users.models import User
from app.users.security import create_access_token
from tests.conftest import MakeClient
from tests.harness.asgi import RunningApp
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD, UserFactory

if TYPE_CHECKING:
    from tests.harness.contract import Contract

ClientFor = Callable[[User], Awaitable[AsyncClient]]


@pytest.fixture
def user_factory(db_session: AsyncSession) -> type[UserFactory]:
    """The factory of users. `create_async` commits them to the test's database."""

    # A separate class: an attribute of UserFactory itself would outlive the test.
    class BoundUserFactory(UserFactory):
        __async_session__ = db_session

    return BoundUserFactory


@pytest.fixture
async def user(user_factory: type[UserFactory]) -> User:
    """A user in the database."""
    return await user_factory.create_async()


@pytest.fixture
def client_for(make_client: MakeClient, app: FastAPI) -> ClientFor:
    """Creates a client that is logged in as a user, with a real token in each request."""

    async def make(user: User) -> AsyncClient:
        token = create_access_token(user.id, app.state.settings)
        return await make_client(headers={"Authorization": f"Bearer {token}"})

    return make


@pytest.fixture
def email_sender(app: FastAPI, running_app: RunningApp) -> AsyncMock:
    """A mock that replaces the application's e-mail sender."""
    sender = AsyncMock(spec=EmailSender)
    running_app.lifespan_state["email_sender"] = sender  # `app` restores it
    return sender


@pytest.fixture
def contract_headers(contract: "Contract") -> dict[str, str]:
    """The `Authorization` header of a user who has signed up and logged in."""
    new_user: dict[str, Any] = {"email": "ada@example.com", "password": PASSWORD}
    contract["/users"]["POST"].Case(body=new_user).call()
    login: dict[str, Any] = {"username": new_user["email"], "password": PASSWORD}
    form = "application/x-www-form-urlencoded"
    response = contract["/token"]["POST"].Case(body=login, media_type=form).call()
    return {"Authorization": f"Bearer {response.json()['access_token']}"}
