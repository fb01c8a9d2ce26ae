"""The way out: what a transaction that is rolled back cannot show."""

import asyncio

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.isolation import Isolation, OwnDatabase
from tests.http_client import AsyncClient
from tests.isolation.probe import Note, ProbeBase

pytestmark = pytest.mark.own_database
twice = pytest.mark.parametrize("run", [1, 2])


@pytest.fixture(autouse=True)
async def probe_table_of_its_own(isolation: OwnDatabase) -> None:
    """The table in the database of the test, which has only what the migrations make."""
    async with isolation.engine.begin() as connection:
        await connection.run_sync(ProbeBase.metadata.create_all)


@twice
async def test_commits_are_real_and_in_no_other_test_s_database(
    client: AsyncClient,
    db_session: AsyncSession,
    db_engine: AsyncEngine,
    isolation: OwnDatabase,
    run: int,
) -> None:
    assert list(await db_session.scalars(select(Note.name))) == []
    await db_session.rollback()
    await client.post("/probe/notes/a")
    async with isolation.engine.connect() as another_connection:
        assert list(await another_connection.scalars(select(Note.name))) == ["a"]
    async with db_engine.connect() as shared:
        assert list(await shared.scalars(select(Note.name))) == []


async def test_one_of_two_racing_requests_wins(client: AsyncClient) -> None:
    responses = await asyncio.gather(*(client.post("/probe/notes/same") for _ in range(2)))
    assert sorted(response.status_code for response in responses) == [200, 409]


async def test_requests_run_side_by_side(isolation: Isolation) -> None:
    async with isolation.session() as one, isolation.session() as two:
        assert (await one.connection()).sync_connection is not (
            await two.connection()
        ).sync_connection
