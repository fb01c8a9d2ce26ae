"""The requests of one test: each by itself, whatever the others do."""

import asyncio

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from tests.conftest import MakeClient
from tests.harness.isolation import Isolation
from tests.harness.session import SavepointSession
from tests.harness.turns import Participant, served
from tests.http_client import AsyncClient, connect_websocket
from tests.isolation.probe import greeter, hanging, tenant

twice = pytest.mark.parametrize("run", [1, 2])


async def test_concurrent_requests_all_succeed_and_see_the_commits_of_others(
    client: AsyncClient,
) -> None:
    responses = await asyncio.gather(*(client.post(f"/probe/slow/{n}") for n in range(6)))
    assert sorted(response.json() for response in responses) == [1, 2, 3, 4, 5, 6]
    async with asyncio.TaskGroup() as tasks:
        for number in range(6, 9):
            tasks.create_task(client.post(f"/probe/notes/{number}?in_background=b{number}"))
    assert len((await client.get("/probe/notes")).json()) == 12


async def test_request_is_over_before_the_next_begins(client: AsyncClient) -> None:
    await asyncio.gather(*(client.post("/probe/numbered") for _ in range(3)))
    assert (await client.get("/probe/notes")).json() == ["0", "1", "2"]


async def test_request_goes_on_when_one_that_it_made_to_its_own_application_is_over(
    isolation: Isolation,
) -> None:
    who = Participant()
    async with isolation.request(who):
        async with isolation.request(who):
            pass
        token = served.set(who)
        async with isolation.session() as session:
            await session.execute(text("SELECT 1"))
            assert isinstance(session.sync_session, SavepointSession)
            assert not session.sync_session.is_idle  # or others could end what it reads
        served.reset(token)


async def test_sockets_and_requests_take_turns(client: AsyncClient) -> None:
    async with (
        connect_websocket(client, "/probe/socket-with-session") as one,
        connect_websocket(client, "/probe/socket-with-session") as two,
    ):
        await one.send_text("a")
        await two.send_text("b")
        await client.post("/probe/notes/c")
        assert {await one.receive_text(), await two.receive_text()} <= {
            f"{count} saved" for count in (1, 2, 3)
        }
        assert sorted((await client.get("/probe/notes")).json()) == ["a", "b", "c"]


async def test_request_that_is_cancelled_leaves_nothing_behind(client: AsyncClient) -> None:
    await client.post("/probe/notes/before")
    request = asyncio.create_task(client.post("/probe/hang"))
    await hanging.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await client.post("/probe/notes/after")
    assert (await client.get("/probe/notes")).json() == ["before", "after"]


async def test_context_variables_stay_in_their_request(client: AsyncClient) -> None:
    assert (await client.get("/probe/tenant/one")).json() == "nobody"
    assert (await client.get("/probe/tenant/two")).json() == "nobody"
    assert tenant.get() == "nobody"


@twice
async def test_state_of_the_application_is_restored_after_the_test(app: FastAPI, run: int) -> None:
    assert not hasattr(app.state, "left_behind")
    app.state.left_behind = True


@twice
async def test_overrides_are_gone_after_the_test(
    app: FastAPI, client: AsyncClient, run: int
) -> None:
    assert (await client.get("/probe/greeting")).json() == "the real one"
    app.dependency_overrides[greeter] = lambda: "an override"
    assert (await client.get("/probe/greeting")).json() == "an override"


async def test_clients_of_two_users_stay_two_users(make_client: MakeClient) -> None:
    ada = await make_client(headers={"x-user": "ada"})
    bob = await make_client(headers={"x-user": "bob"})
    users = [(await each.get("/probe/me")).json() for each in (ada, bob, ada)]
    assert users == ["ada", "bob", "ada"]


async def test_lifespan_state_is_each_request_s_own_copy(client: AsyncClient) -> None:
    assert (await client.get("/probe/visits")).json() == 1
    assert (await client.get("/probe/visits")).json() == 1
