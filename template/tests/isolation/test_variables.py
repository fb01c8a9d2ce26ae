"""A test sees the context variables of its fixtures, and leaves none behind."""

from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.http_client import AsyncClient

sync_variable = ContextVar("sync_variable", default="unset")
async_variable = ContextVar("async_variable", default="unset")
twice = pytest.mark.parametrize("run", [1, 2])


@pytest.fixture
def of_sync_fixture() -> Iterator[None]:
    token = sync_variable.set("by a fixture")
    yield
    sync_variable.reset(token)


@pytest.fixture
async def of_async_fixture(client: AsyncClient) -> AsyncIterator[None]:
    token = async_variable.set("by a fixture")
    yield
    async_variable.reset(token)


@twice
async def test_what_a_test_sets_ends_with_it(db_engine: AsyncEngine, run: int) -> None:
    assert (sync_variable.get(), async_variable.get()) == ("unset", "unset")
    sync_variable.set("by a test")
    async_variable.set("by a test")


@twice
async def test_what_fixtures_set_is_seen(
    of_sync_fixture: None, of_async_fixture: None, run: int
) -> None:
    assert (sync_variable.get(), async_variable.get()) == ("by a fixture", "by a fixture")
    async_variable.set("by a test")
