"""A rolled-back test refuses what it cannot show, and says what to do instead."""

import os

import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.database import create_engine
from app.settings import Settings
from tests.harness.guard import guard
from tests.http_client import AsyncClient
from tests.isolation.conftest import ExpectRefusal
from tests.isolation.probe import Note

pytestmark = pytest.mark.usefixtures("probe_table")


async def test_transaction_of_another_engine(
    client: AsyncClient, db_engine: AsyncEngine, expect_refusal: ExpectRefusal
) -> None:
    with expect_refusal("different engine.*@pytest.mark.committed"):
        await client.post("/probe/own-engine/a")
    with expect_refusal("different engine.*@pytest.mark.committed"):
        async with db_engine.begin() as connection:
            await connection.execute(insert(Note).values(name="a"))


async def test_two_transactions_that_overlap_in_one_task(
    client: AsyncClient, expect_refusal: ExpectRefusal
) -> None:
    with expect_refusal("overlap.*@pytest.mark.committed"):
        await client.post("/probe/undone/a/but/b")


async def test_refusal_is_not_lost_when_the_application_swallows_it(client: AsyncClient) -> None:
    assert (await client.post("/probe/swallowed/a")).status_code == 200
    assert "overlap" in guard.refusals[0]
    guard.refusals.clear()


@pytest.mark.parametrize("statement", ["COMMIT", "/* traced */ rollback", "END"])
async def test_statement_that_ends_the_transaction(
    db_session: AsyncSession, statement: str, expect_refusal: ExpectRefusal
) -> None:
    with expect_refusal("@pytest.mark.committed"):
        await db_session.execute(text(statement))


async def test_isolation_level(db_session: AsyncSession, expect_refusal: ExpectRefusal) -> None:
    with expect_refusal("isolation level.*@pytest.mark.committed"):
        await db_session.connection(execution_options={"isolation_level": "SERIALIZABLE"})


async def test_database_of_a_developer(
    db_engine: AsyncEngine, expect_refusal: ExpectRefusal
) -> None:
    url = db_engine.url.set(database="/srv/app.db" if db_engine.dialect.name == "sqlite" else "app")
    engine = create_engine(url.render_as_string(hide_password=False))
    with expect_refusal("is not a test database"):
        async with engine.connect():
            pass


async def test_environment_names_the_test_database(db_engine: AsyncEngine) -> None:
    assert os.environ["DATABASE_URL"] == db_engine.url.render_as_string(hide_password=False)


async def test_test_database_without_its_fixtures(
    settings: Settings, expect_refusal: ExpectRefusal
) -> None:
    engine = create_engine(settings.database_url)
    with expect_refusal("without its fixtures"):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    await engine.dispose()
