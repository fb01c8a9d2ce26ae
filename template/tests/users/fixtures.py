"""Fixtures around users: accounts, and clients that are logged in."""

from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI

from app.users.models import User
from app.users.security import create_access_token
from tests.conftest import MakeClient
from tests.http_client import AsyncClient

ClientFor = Callable[[User], Awaitable[AsyncClient]]


@pytest.fixture
def client_for(make_client: MakeClient, app: FastAPI) -> ClientFor:
    """Makes a client that is logged in as a user, with a real token in each request."""

    async def make(user: User) -> AsyncClient:
        token = create_access_token(user.id, app.state.settings)
        return await make_client(headers={"Authorization": f"Bearer {token}"})

    return make
