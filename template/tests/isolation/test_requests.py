"""The requests of a test do not affect each other."""

import asyncio

import pytest
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from tests.conftest import MakeClient
from tests.http_client import AsyncClient, connect_websocket
from tests.isolation.probe import greeter, hanging, save, tenant

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


async def test_application_may_call_itself(app: FastAPI, client: AsyncClient) -> None:
    @app.post("/probe/calls-itself")
    async def call_itself() -> int:
        return (await client.post("/probe/notes/a")).status_code

    async with asyncio.timeout(5):
        assert (await client.post("/probe/calls-itself")).json() == 200


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


@pytest.mark.parametrize("turns", range(12))
async def test_request_may_be_cancelled_at_any_time(client: AsyncClient, turns: int) -> None:
    request = asyncio.create_task(client.post("/probe/notes/given-up"))
    for _ in range(turns):
        await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait({request})
    await client.post("/probe/notes/after")
    assert "after" in (await client.get("/probe/notes")).json()


@pytest.mark.parametrize("turns", range(12))
async def test_session_may_be_cancelled_at_any_time(
    client: AsyncClient, app: FastAPI, turns: int
) -> None:
    work = asyncio.create_task(save(app.state.session_factory, "given-up"))
    for _ in range(turns):
        await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait({work})
    await client.post("/probe/notes/after")
    assert "after" in (await client.get("/probe/notes")).json()


async def test_context_variables_stay_in_their_request(client: AsyncClient) -> None:
    assert (await client.get("/probe/tenant/one")).json() == "nobody"
    assert (await client.get("/probe/tenant/two")).json() == "nobody"
    assert tenant.get() == "nobody"


@twice
async def test_application_is_as_it_was_after_the_test(
    app: FastAPI, client: AsyncClient, run: int
) -> None:
    class TeapotError(Exception):
        pass

    async def add_header(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers.append("X-Added", "once")
        return response

    @app.get("/teapot")
    async def boil() -> None:
        raise TeapotError

    assert not hasattr(app.state, "left_behind")
    assert "/probe/notes" in app.openapi()["paths"]
    app.state.left_behind = True
    app.add_exception_handler(TeapotError, lambda request, error: Response(status_code=418))
    app.add_middleware(BaseHTTPMiddleware, dispatch=add_header)
    app.title = f"Title of run {run}"
    response = await client.get("/teapot")
    assert (response.status_code, response.headers.get_list("X-Added")) == (418, ["once"])
    assert (await client.get("/probe/cached/1", params={"value": run})).json() == str(run)


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


async def test_client_takes_the_options_of_its_library(make_client: MakeClient) -> None:
    client = await make_client(base_url="https://service.example/probe", params={"value": "7"})
    response = await client.get("/cached/seven")
    assert str(response.url) == "https://service.example/probe/cached/seven?value=7"
    assert response.json() == "7"


async def test_lifespan_state_is_each_request_s_own_copy(client: AsyncClient) -> None:
    assert (await client.get("/probe/visits")).json() == 1
    assert (await client.get("/probe/visits")).json() == 1
