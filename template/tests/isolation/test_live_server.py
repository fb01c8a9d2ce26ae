"""A real server in the test's event loop and transaction."""

import asyncio

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.http_client import AsyncClient
from tests.isolation.probe import Note


async def test_endless_stream_sees_the_rows_of_the_test_and_of_other_requests(
    live_server: str, db_session: AsyncSession
) -> None:
    db_session.add(Note(name="arranged"))
    await db_session.commit()
    async with (
        asyncio.timeout(5),
        AsyncClient(base_url=live_server) as client,
        client.stream("POST", "/probe/endless") as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "arranged"
        await client.post("/probe/notes/posted")
        while await anext(lines) != "arranged,posted":
            pass
    names = await db_session.scalars(select(Note.name).order_by(Note.id))
    assert names.all() == ["arranged", "posted"]
