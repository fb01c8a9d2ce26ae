"""Fixtures for items: their owners, and their factory."""

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from app.items.feed import Feed
from app.users.models import User
from tests.harness.asgi import RunningApp
from tests.http_client import AsyncClient
from tests.items.factories import ItemFactory
from tests.users.factories import UserFactory
from tests.users.fixtures import ClientFor


@pytest.fixture
async def owner(user_factory: type[UserFactory]) -> User:
    """A user who owns the items of the tests."""
    return await user_factory.create_async()


@pytest.fixture
async def stranger(user_factory: type[UserFactory]) -> User:
    """Another user."""
    return await user_factory.create_async()


@pytest.fixture
async def owner_client(client_for: ClientFor, owner: User) -> AsyncClient:
    """A client that is logged in as the owner."""
    return await client_for(owner)


@pytest.fixture
async def stranger_client(client_for: ClientFor, stranger: User) -> AsyncClient:
    """A client that is logged in as the stranger."""
    return await client_for(stranger)


@pytest.fixture
def item_factory(db_session: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> type[ItemFactory]:
    """The factory of items. `create_async` commits them to the test's database."""
    # Otherwise, the attribute of the class would outlive the test.
    monkeypatch.setattr(ItemFactory, "__async_session__", db_session)
    return ItemFactory


@pytest.fixture
def feed(app: FastAPI, running_app: RunningApp) -> Feed:
    """The application's feed."""
    feed: Feed = running_app.lifespan_state["feed"]
    return feed
