"""What a culprit is, and what the test after it must find."""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import pytest
from fastapi import FastAPI
from sqlalchemy import make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.http_client import AsyncClient
from tests.neighbours.probe import CLEAN_CONNECTION, Author, read_connection

DATABASE = make_url(os.environ["DATABASE_URL"]).get_backend_name()
COMMITTED, ROLLED_BACK = "committed", "rolled_back"

Test = TypeVar("Test", bound=Callable[..., Any])


class Outcome(NamedTuple):
    """How a culprit must end."""

    kind: str
    sentence: str = ""
    """A part of the message if the culprit fails."""


PASSES, SKIPS, FAILS_AS_EXPECTED = Outcome("passed"), Outcome("skipped"), Outcome("xfailed")


def fails(sentence: str) -> Outcome:
    """Expect the culprit to fail, with `sentence` in the message."""
    return Outcome("failed", sentence)


def on(database: str) -> pytest.MarkDecorator:
    """Skip a culprit on the other database."""
    return pytest.mark.skipif(database != DATABASE, reason=f"needs {database}")


def culprit(
    *,
    rolled_back: Outcome | None = None,
    committed: Outcome | None = None,
    depends_on_timing: bool = False,
) -> Callable[[Test], Test]:
    """Make a test a culprit in each mode that has an outcome."""
    outcomes = {ROLLED_BACK: rolled_back, COMMITTED: committed}

    def register(test: Test) -> Test:
        if depends_on_timing:
            pytest.mark.timing(test)
        pytest.mark.culprit({mode: must for mode, must in outcomes.items() if must})(test)
        return test

    return register


def pairs_of(collector: pytest.Collector, test: Callable[..., Any]) -> Iterator[pytest.Item]:
    """Yield, for each mode of a culprit, the culprit and its next tests, the same mode first."""
    marks = {mark.name: mark for mark in getattr(test, "pytestmark", ())}
    outcomes: dict[str, Outcome] = marks["culprit"].args[0] if "culprit" in marks else {}
    for mode, must in outcomes.items():
        item = in_mode(collector, test, test.__name__, mode)
        item.user_properties += [("culprit", must.kind), ("sentence", must.sentence)]
        yield item
        for next_mode in sorted((ROLLED_BACK, COMMITTED), key=lambda each: each != mode):
            name = f"test_next_after_{item.name.removeprefix('test_')}"
            item_after = in_mode(collector, the_next_test, name, next_mode)
            item_after.user_properties.append(("next_after", item.name))
            if "timing" in marks:
                item_after.add_marker(pytest.mark.timing)
            yield item_after


def in_mode(
    collector: pytest.Collector, test: Callable[..., Any], name: str, mode: str
) -> pytest.Function:
    """Return the item of a test in one of the modes: committed by a marker, or rolled back."""
    item: pytest.Function = pytest.Function.from_parent(
        collector, name=f"{name}[{mode}]", callobj=test
    )
    if mode == COMMITTED:
        item.add_marker(COMMITTED)
    return item


@pytest.mark.usefixtures("anyio_backend")
async def the_next_test(
    request: pytest.FixtureRequest, app: FastAPI, client: AsyncClient, db_session: AsyncSession
) -> None:
    """Check that the database, connections and application show no trace of the culprit."""
    async with asyncio.timeout(10):
        await assert_nothing_is_stored(client, db_session)
        await assert_application_is_new(app, client)
        await assert_connections_are_clean(client, db_session)
        created = await client.post("/neighbours/authors/ada")
        if request.node.get_closest_marker(COMMITTED):
            assert created.json() == 1
        db_session.add(Author(name="bob"))
        await db_session.commit()
        assert (await client.get("/neighbours/authors")).json() == ["ada", "bob"]
        assert await names(db_session) == ["ada", "bob"]
        with pytest.raises(IntegrityError):
            await client.post("/neighbours/books/orphan/of/0")


async def assert_nothing_is_stored(client: AsyncClient, db_session: AsyncSession) -> None:
    assert (await client.get("/neighbours/authors")).json() == []
    assert await names(db_session) == []
    await db_session.rollback()


async def assert_application_is_new(app: FastAPI, client: AsyncClient) -> None:
    response = await client.get("/neighbours/greeting")
    assert response.json() == "the real one"
    assert "x-culprit" not in response.headers
    assert (await client.get("/neighbours/cache")).json() == []
    assert (await client.get("/culprit")).status_code == 404
    assert not hasattr(app.state, "culprit")
    assert "/culprit" not in app.openapi()["paths"]


async def assert_connections_are_clean(client: AsyncClient, db_session: AsyncSession) -> None:
    expected = CLEAN_CONNECTION[DATABASE]
    assert (await client.get("/neighbours/connection")).json() == expected
    assert await read_connection(db_session) == expected
    await db_session.rollback()


async def names(session: AsyncSession) -> list[str]:
    """Return the names of all authors, in the order in which they were stored."""
    return list(await session.scalars(select(Author.name).order_by(Author.id)))
