"""Culprits: each does something that has broken other tests somewhere, and says how it must end."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, Request, Response
from sqlalchemy import Engine, insert, select, text
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from app.core.database import create_engine
from app.settings import Settings
from tests.conftest import MakeClient
from tests.harness import transaction
from tests.http_client import ASGIWebSocketTransport, AsyncClient, connect_websocket
from tests.neighbours import probe
from tests.neighbours.pairs import (
    DATABASE,
    FAILS_AS_EXPECTED,
    PASSES,
    SKIPS,
    culprit,
    fails,
    names,
    on,
)
from tests.neighbours.probe import SLOW, Author, Book, greeter, save

REFUSED = fails("@pytest.mark.committed")
STRAY_TASK = fails("The test has left a task running")
OPEN_TRANSACTION = fails("The test has not ended all of its transactions")
SCOPE_LEFT = fails("The test has entered a task group, timeout or WebSocket and not left it")
CANCELLED = fails("was cancelled by a task group, timeout or WebSocket")
TASK_EXITS = fails("A task raised SystemExit(3)")
FIXTURE_EXITS = fails("The fixture raised SystemExit(3)")
FIXTURE_HANGS = fails("Timeout (>3.0s)")
FIXTURE_HANGS_AT_THE_END = fails("The fixture did not end within 1.5 s")
# On SQLite, a cancelled statement continues, and with real commits, it keeps its lock meanwhile.
PASSES_ON_POSTGRESQL = PASSES if DATABASE == "postgresql" else None

# Nobody closes what a test keeps here.
kept: list[object] = []


@pytest.fixture(autouse=True)
def nothing_has_happened() -> None:
    for happened in (probe.begun, probe.hanging, probe.told):
        happened.clear()
    probe.started.clear()


@pytest.fixture
def factory(app: FastAPI) -> async_sessionmaker[AsyncSession]:
    """The application's own session factory."""
    factory: async_sessionmaker[AsyncSession] = app.state.session_factory
    return factory


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make statements that wait for another transaction give up soon."""
    monkeypatch.setattr(transaction, "PATIENCE", 0.25)


# ---- Rollbacks ----


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_rollback_after_only_reading(client: AsyncClient, db_session: AsyncSession) -> None:
    await client.post("/neighbours/authors/ada")
    assert (await client.get("/neighbours/authors/nobody")).status_code == 404
    assert await names(db_session) == ["ada"]


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_rollback_after_a_failed_write(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")
    with pytest.raises(IntegrityError):
        await client.post("/neighbours/authors/ada")
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_rollback_of_what_the_test_has_written(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    db_session.add(Author(name="ada"))
    await db_session.flush()
    await db_session.rollback()
    assert (await client.get("/neighbours/authors")).json() == []


# ---- Other engines ----


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_commit_on_an_async_engine_of_its_own(
    client: AsyncClient, settings: Settings
) -> None:
    engine = create_engine(settings.database_url)
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(Author).values(name="ada"))
        assert (await client.get("/neighbours/authors")).json() == ["ada"]
    finally:
        await engine.dispose()


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_commit_on_an_engine_that_nobody_disposes_of(
    db_session: AsyncSession, settings: Settings
) -> None:
    async with create_engine(settings.database_url).begin() as connection:
        await connection.execute(insert(Author).values(name="ada"))
    assert await names(db_session) == ["ada"]


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_commit_on_a_sync_engine(client: AsyncClient, sync_engine: Engine) -> None:
    with sync_engine.begin() as connection:
        connection.execute(insert(Author).values(name="ada"))
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_commit_on_a_sync_engine_in_a_thread(
    client: AsyncClient, sync_engine: Engine
) -> None:
    def write() -> None:
        with sync_engine.begin() as connection:
            connection.execute(insert(Author).values(name="ada"))

    await asyncio.to_thread(write)
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@pytest.fixture
def sync_engine(settings: Settings) -> Iterator[Engine]:
    """A sync engine on the test database."""
    driver = {"sqlite": "sqlite3", "postgresql": "psycopg"}[DATABASE]
    pytest.importorskip(driver, reason="needs psycopg")
    url = create_engine(settings.database_url).url
    name = "sqlite" if DATABASE == "sqlite" else "postgresql+psycopg"
    engine = create_sync_engine(url.set(drivername=name))
    yield engine
    engine.dispose()


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_commit_on_the_engine_of_the_fixture(
    client: AsyncClient, db_engine: AsyncEngine
) -> None:
    async with db_engine.begin() as connection:
        await connection.execute(insert(Author).values(name="ada"))
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_commit_in_a_second_application(client: AsyncClient, settings: Settings) -> None:
    from app.main import create_app

    await save(create_app(settings).state.session_factory, "ada")
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_application_imported_from_its_module(client: AsyncClient) -> None:
    from app.main import app as imported

    transport = ASGIWebSocketTransport(app=imported)
    async with AsyncClient(transport=transport, base_url="http://test") as pasted:
        assert (await pasted.get("/readyz")).status_code == 200
    await save(imported.state.session_factory, "ada")
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=fails("without its fixtures"), committed=PASSES)
async def test_database_without_its_fixtures(anyio_backend: str) -> None:
    from app.main import app as imported

    await save(imported.state.session_factory, "ada")


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_isolation_level(db_session: AsyncSession) -> None:
    level = {"execution_options": {"isolation_level": "SERIALIZABLE"}}
    await db_session.connection(**level)
    db_session.add(Author(name="ada"))
    await db_session.commit()


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_transaction_ended_by_a_statement(db_session: AsyncSession) -> None:
    db_session.add(Author(name="ada"))
    await db_session.flush()
    await db_session.execute(text("/* by hand */ ROLLBACK"))


# ---- Refusals that the application swallows ----


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_refusal_swallowed_by_the_endpoint(
    app: FastAPI, client: AsyncClient, db_engine: AsyncEngine
) -> None:
    @app.post("/culprit")
    async def save_elsewhere() -> None:
        with suppress(Exception):
            async with db_engine.begin() as connection:
                await connection.execute(insert(Author).values(name="ada"))

    assert (await client.post("/culprit")).status_code == 200


@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_refusal_swallowed_by_a_handler(
    app: FastAPI, make_client: MakeClient, db_engine: AsyncEngine
) -> None:
    @app.exception_handler(Exception)
    async def answer(request: Request, error: Exception) -> Response:
        return Response(status_code=500)

    @app.post("/culprit")
    async def save_elsewhere() -> None:
        async with db_engine.begin() as connection:
            await connection.execute(insert(Author).values(name="ada"))
        raise ValueError

    client = await make_client(raise_app_exceptions=False)
    assert (await client.post("/culprit")).status_code == 500


# ---- Requests that are cancelled ----


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_request_cancelled_before_it_begins(client: AsyncClient) -> None:
    await give_up(client.post("/neighbours/authors/ada"), turns=0)
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_requests_cancelled_after_some_turns_of_the_loop(client: AsyncClient) -> None:
    for turns in range(1, 30):
        await give_up(client.post(f"/neighbours/authors/{turns}"), turns)
    await client.post("/neighbours/authors/last")
    assert "last" in (await client.get("/neighbours/authors")).json()


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_reads_cancelled_after_some_turns_of_the_loop(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")
    for turns in range(1, 30):
        await give_up(client.get("/neighbours/authors"), turns)
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=PASSES, committed=PASSES_ON_POSTGRESQL, depends_on_timing=True)
async def test_request_cancelled_while_a_statement_runs(client: AsyncClient) -> None:
    request = asyncio.create_task(client.post("/neighbours/authors/ada/slowly"))
    await probe.begun.wait()
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait({request})
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=PASSES, committed=PASSES_ON_POSTGRESQL, depends_on_timing=True)
async def test_request_out_of_time_while_a_statement_runs(client: AsyncClient) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.post("/neighbours/authors/ada/slowly")
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=PASSES, committed=PASSES_ON_POSTGRESQL, depends_on_timing=True)
async def test_request_moved_on_from_while_a_statement_runs(client: AsyncClient) -> None:
    with anyio.move_on_after(0.1) as scope:
        await client.post("/neighbours/authors/ada/slowly")
    assert scope.cancelled_caught
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=PASSES, committed=PASSES_ON_POSTGRESQL, depends_on_timing=True)
async def test_endpoint_gives_up_its_own_statement(
    app: FastAPI, client: AsyncClient, factory: async_sessionmaker[AsyncSession]
) -> None:
    @app.post("/culprit")
    async def give_up_and_write() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05), factory() as session:
                await session.execute(text(SLOW[DATABASE]))
        await save(factory, "ada")

    await client.post("/culprit")
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_request_cancelled_after_it_has_written(client: AsyncClient) -> None:
    request = asyncio.create_task(client.post("/neighbours/authors/ada/when-told"))
    await probe.hanging.wait()
    await give_up(request, turns=0)
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_statement_of_the_test_itself_given_up(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await db_session.execute(text(SLOW[DATABASE]))
    await db_session.rollback()
    await client.post("/neighbours/authors/ada")
    assert await names(db_session) == ["ada"]


async def give_up(request: Coroutine[Any, Any, Any] | asyncio.Task[Any], turns: int) -> None:
    """Cancel a request after some turns of the event loop; wait until it ends."""
    task = asyncio.ensure_future(request)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})


# ---- Streams ----


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_client_leaves_a_stream(live_server: str, db_session: AsyncSession) -> None:
    await leave_stream(live_server, "/neighbours/endless")
    db_session.add(Author(name="ada"))
    await db_session.commit()
    assert await names(db_session) == ["ada"]


@pytest.mark.timeout(8)
@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_client_leaves_a_stream_with_an_open_transaction(
    live_server: str, db_session: AsyncSession
) -> None:
    await leave_stream(live_server, "/neighbours/endless-transaction")
    assert await names(db_session) == []


async def leave_stream(url: str, path: str) -> None:
    """Read the first line of an endless stream, and disconnect."""
    async with AsyncClient(base_url=url) as client, client.stream("GET", path) as response:
        assert await anext(response.aiter_lines()) == "0"


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_server_stops_during_a_stream(live_server: str) -> None:
    client = AsyncClient(base_url=live_server)
    stream = client.stream("GET", "/neighbours/endless")
    response = await stream.__aenter__()
    assert await anext(response.aiter_lines()) == "0"
    kept.append((client, stream, response))


@culprit(rolled_back=OPEN_TRANSACTION, committed=OPEN_TRANSACTION)
async def test_stream_outlives_the_dependency_whose_session_it_uses(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")
    assert (await client.get("/neighbours/stream")).text == "ada\n"


# ---- Concurrent sessions ----


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_queries_side_by_side_with_a_session_each(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")
    for _ in range(5):
        assert (await client.get("/neighbours/side-by-side")).json() == [1] * 5


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_writes_side_by_side_with_a_session_each(client: AsyncClient) -> None:
    await client.post("/neighbours/side-by-side/ada")
    assert len((await client.get("/neighbours/authors")).json()) == 5


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_requests_side_by_side(client: AsyncClient) -> None:
    await asyncio.gather(*(client.post(f"/neighbours/authors/{n}") for n in range(8)))
    assert len((await client.get("/neighbours/authors")).json()) == 8


@on("postgresql")
@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_interleaved_sessions_that_both_write(client: AsyncClient) -> None:
    await client.post("/neighbours/interleaved/ada/bob")
    assert sorted((await client.get("/neighbours/authors")).json()) == ["ada", "bob"]


@on("sqlite")
@culprit(rolled_back=REFUSED)
async def test_interleaved_sessions_on_a_database_with_one_writer(client: AsyncClient) -> None:
    await client.post("/neighbours/interleaved/ada/bob")


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_interleaved_sessions_that_take_turns(
    factory: async_sessionmaker[AsyncSession], client: AsyncClient
) -> None:
    async with factory() as one, factory() as two:
        one.add(Author(name="ada"))
        await one.commit()
        two.add(Author(name="bob"))
        await two.commit()
        assert await names(one) == ["ada", "bob"]
    assert (await client.get("/neighbours/authors")).json() == ["ada", "bob"]


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_session_of_the_test_reads_while_a_request_runs(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    async with asyncio.TaskGroup() as tasks:
        request = tasks.create_task(client.get("/neighbours/authors-when-told"))
        await probe.hanging.wait()
        assert await names(db_session) == []
        probe.told.set()
    assert request.result().json() == []


@culprit(rolled_back=REFUSED)
async def test_session_of_the_test_reads_while_a_request_has_written(
    client: AsyncClient, db_session: AsyncSession, impatient: None
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.post("/neighbours/authors/ada/when-told"))
        await probe.hanging.wait()
        await names(db_session)


# ---- What the test itself leaves open ----


@culprit(rolled_back=fails("await db_session.commit()"), committed=PASSES)
async def test_request_before_the_test_has_committed(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    db_session.add(Author(name="ada"))
    await db_session.flush()
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=fails("await db_session.rollback()"), committed=PASSES)
async def test_request_after_a_failed_flush(client: AsyncClient, db_session: AsyncSession) -> None:
    db_session.add_all([Author(name="ada"), Author(name="ada")])
    with pytest.raises(IntegrityError):
        await db_session.flush()
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_failed_flush_at_the_end(db_session: AsyncSession) -> None:
    db_session.add(Author(name="ada"))
    await db_session.commit()
    db_session.add(Author(name="ada"))
    with pytest.raises(IntegrityError):
        await db_session.flush()


@culprit(rolled_back=OPEN_TRANSACTION, committed=OPEN_TRANSACTION)
async def test_session_that_is_never_closed(factory: async_sessionmaker[AsyncSession]) -> None:
    session = factory()
    kept.append(session)
    assert await names(session) == []


@culprit(rolled_back=OPEN_TRANSACTION, committed=OPEN_TRANSACTION)
async def test_transaction_left_open_that_holds_locks(
    factory: async_sessionmaker[AsyncSession],
) -> None:
    session = factory()
    kept.append(session)
    session.add(Author(name="ada"))
    await session.flush()
    with pytest.raises(IntegrityError):
        await session.execute(insert(Author).values(name="ada"))


@culprit(rolled_back=STRAY_TASK, committed=STRAY_TASK)
async def test_request_left_over(client: AsyncClient) -> None:
    kept.append(asyncio.create_task(client.post("/neighbours/authors/ada/when-told")))
    await probe.hanging.wait()


@culprit(rolled_back=STRAY_TASK, committed=STRAY_TASK)
async def test_audit_that_nobody_waits_for(client: AsyncClient) -> None:
    await client.post("/neighbours/audit/ada")


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_audit_that_ends_with_the_test(client: AsyncClient) -> None:
    await client.post("/neighbours/audit/ada")
    probe.told.set()
    await asyncio.wait(probe.started)
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@culprit(rolled_back=STRAY_TASK, committed=STRAY_TASK, depends_on_timing=True)
async def test_task_left_amid_its_statements(
    factory: async_sessionmaker[AsyncSession], client: AsyncClient
) -> None:
    async def write_on_and_on() -> None:
        number = 0
        while True:
            await save(factory, f"number {number}")
            number += 1
            probe.hanging.set()

    kept.append(asyncio.create_task(write_on_and_on()))
    await probe.hanging.wait()


@culprit(rolled_back=STRAY_TASK)
async def test_task_left_without_a_database() -> None:
    kept.append(asyncio.create_task(asyncio.Event().wait()))


@culprit(rolled_back=PASSES, committed=PASSES, depends_on_timing=True)
async def test_background_task_writes(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada/in-background")
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


# ---- What stays on a connection ----


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_setting_of_a_transaction(client: AsyncClient, db_session: AsyncSession) -> None:
    await run_everywhere(client, db_session, "SET LOCAL culprit.tenant = 'a'")


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_setting_of_a_session(client: AsyncClient, db_session: AsyncSession) -> None:
    await run_everywhere(client, db_session, "SET culprit.tenant = 'a'")


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_setting_by_a_function(client: AsyncClient, db_session: AsyncSession) -> None:
    await run_everywhere(client, db_session, "SELECT set_config('culprit.tenant', 'a', false)")


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_setting_that_makes_statements_fail(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    await run_everywhere(client, db_session, "SET statement_timeout = '1s'")
    await run_everywhere(client, db_session, "SET search_path = pg_catalog")


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_role(client: AsyncClient, db_session: AsyncSession) -> None:
    await run_everywhere(client, db_session, "SET ROLE pg_monitor")


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_schema_translated(client: AsyncClient, db_session: AsyncSession) -> None:
    schema = {"sqlite": "main", "postgresql": "public"}[DATABASE]
    await db_session.connection(execution_options={"schema_translate_map": {None: schema}})
    db_session.add(Author(name="ada"))
    await db_session.commit()
    assert (await client.get("/neighbours/authors")).json() == ["ada"]


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_advisory_locks(client: AsyncClient, db_session: AsyncSession) -> None:
    await run_everywhere(client, db_session, "SELECT pg_advisory_lock_shared(1)")
    await run_everywhere(client, db_session, "SELECT pg_advisory_xact_lock_shared(2)")


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_prepared_statement(db_session: AsyncSession) -> None:
    await db_session.execute(text("PREPARE count_authors AS SELECT 1"))
    assert await db_session.scalar(text("EXECUTE count_authors")) == 1
    await db_session.commit()


@on("postgresql")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_listening(db_session: AsyncSession) -> None:
    await db_session.execute(text("LISTEN authors"))
    await db_session.commit()


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_temporary_table(db_session: AsyncSession) -> None:
    await db_session.execute(text("CREATE TEMPORARY TABLE of_one_test (id INTEGER)"))
    await db_session.commit()
    assert await db_session.scalar(text("SELECT count(*) FROM of_one_test")) == 0


@on("postgresql")
@culprit(rolled_back=fails("connection of the rolled-back test was lost"), committed=PASSES)
async def test_connection_killed(client: AsyncClient, db_session: AsyncSession) -> None:
    with pytest.raises(DBAPIError):
        await db_session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    await db_session.rollback()
    assert (await client.get("/neighbours/authors")).json() == []


@on("postgresql")
@culprit(rolled_back=REFUSED, committed=PASSES)
async def test_connection_killed_at_the_end(db_session: AsyncSession) -> None:
    with pytest.raises(DBAPIError):
        await db_session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@on("sqlite")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_pragma_query_only(db_session: AsyncSession) -> None:
    await db_session.execute(text("PRAGMA query_only = ON"))
    db_session.add(Author(name="ada"))
    with pytest.raises(OperationalError):
        await db_session.flush()


@on("sqlite")
@culprit(rolled_back=PASSES, committed=PASSES)
async def test_pragma_foreign_keys_in_a_transaction(db_session: AsyncSession) -> None:
    await db_session.execute(text("PRAGMA foreign_keys = OFF"))  # has no effect
    db_session.add(Book(title="orphan", author_id=0))
    with pytest.raises(IntegrityError):
        await db_session.flush()


async def run_everywhere(client: AsyncClient, db_session: AsyncSession, statement: str) -> None:
    """Run a statement in the application's session and in the test's, and commit both."""
    response = await client.post("/neighbours/statement", params={"sql": statement})
    assert response.status_code == 200
    await db_session.execute(text(statement))
    await db_session.commit()


# ---- The application ----


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_handler_and_route_added(app: FastAPI, client: AsyncClient) -> None:
    @app.exception_handler(404)
    async def answer(request: Request, error: Exception) -> Response:
        return Response(status_code=418)

    @app.get("/culprit")
    async def route() -> None: ...

    assert "/culprit" in app.openapi()["paths"]
    assert (await client.get("/nowhere")).status_code == 418


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_middleware_added(app: FastAPI, client: AsyncClient) -> None:
    async def add_header(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-culprit"] = "here"
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=add_header)
    assert "x-culprit" in (await client.get("/neighbours/greeting")).headers


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_dependency_overridden(app: FastAPI, client: AsyncClient) -> None:
    app.dependency_overrides[greeter] = lambda: "an override"
    assert (await client.get("/neighbours/greeting")).json() == "an override"


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_state_and_cache_filled(app: FastAPI, client: AsyncClient) -> None:
    app.state.culprit = True
    await client.post("/neighbours/cache/value")
    assert (await client.get("/neighbours/cache")).json() == ["value"]


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_session_factory_replaced(
    app: FastAPI, client: AsyncClient, factory: async_sessionmaker[AsyncSession]
) -> None:
    app.state.session_factory = None
    with pytest.raises(TypeError):
        await client.get("/neighbours/authors")


# ---- Tests that end in an unusual way ----


@culprit(
    rolled_back=fails("The test raised SystemExit(3)"),
    committed=fails("The test raised SystemExit(3)"),
)
async def test_exit(db_session: AsyncSession) -> None:
    db_session.add(Author(name="ada"))
    await db_session.commit()
    raise SystemExit(3)


@culprit(rolled_back=TASK_EXITS, committed=TASK_EXITS)
async def test_exit_in_a_task(client: AsyncClient) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    task = asyncio.create_task(leave())
    await asyncio.wait({task})
    assert (await client.get("/neighbours/authors")).json() == []


@pytest.fixture
async def leaves_at_once() -> None:
    raise SystemExit(3)


@pytest.fixture
async def leaves_at_the_end() -> AsyncIterator[None]:
    yield
    raise SystemExit(3)


@pytest.fixture
async def hangs_at_once() -> None:
    try:
        await asyncio.Event().wait()
    finally:  # for example, to wait for a process
        await asyncio.Event().wait()


@pytest.fixture
async def hangs_at_the_end() -> AsyncIterator[None]:
    yield
    await asyncio.Event().wait()


@pytest.mark.timeout(3)
@culprit(rolled_back=FIXTURE_HANGS)
async def test_fixture_that_hangs(hangs_at_once: None, db_session: AsyncSession) -> None:
    pytest.fail("The fixture has not been set up.")


@pytest.mark.timeout(3)
@culprit(rolled_back=FIXTURE_HANGS_AT_THE_END, committed=FIXTURE_HANGS_AT_THE_END)
async def test_fixture_that_hangs_at_the_end(
    hangs_at_the_end: None, db_session: AsyncSession
) -> None:
    db_session.add(Author(name="ada"))
    await db_session.commit()


@pytest.fixture
async def cancelled() -> None:
    raise asyncio.CancelledError


@culprit(rolled_back=FIXTURE_EXITS, committed=FIXTURE_EXITS)
async def test_exit_in_a_fixture(leaves_at_once: None, db_session: AsyncSession) -> None:
    pytest.fail("The fixture has not been set up.")


@culprit(rolled_back=FIXTURE_EXITS, committed=FIXTURE_EXITS)
async def test_exit_at_the_end_of_a_fixture(
    leaves_at_the_end: None, db_session: AsyncSession
) -> None:
    db_session.add(Author(name="ada"))
    await db_session.commit()


@culprit(
    rolled_back=fails("The fixture awaits a task that was cancelled"),
    committed=fails("The fixture awaits a task that was cancelled"),
)
async def test_fixture_that_is_cancelled(cancelled: None, db_session: AsyncSession) -> None:
    pytest.fail("The fixture has not been set up.")


@culprit(rolled_back=CANCELLED, committed=CANCELLED)
async def test_websocket_that_is_never_left(client: AsyncClient) -> None:
    context = connect_websocket(client, "/neighbours/socket")
    kept.append(context)
    await context.__aenter__()


@culprit(rolled_back=SCOPE_LEFT, committed=SCOPE_LEFT)
async def test_task_group_that_is_never_left(client: AsyncClient) -> None:
    tasks = anyio.create_task_group()
    await tasks.__aenter__()
    tasks.start_soon(client.post, "/neighbours/authors/ada/when-told")
    await anyio.lowlevel.checkpoint()


@culprit(rolled_back=CANCELLED, committed=CANCELLED)
async def test_task_group_that_fails_and_is_never_left(client: AsyncClient) -> None:
    async def fail() -> None:
        raise ValueError

    tasks = anyio.create_task_group()
    await tasks.__aenter__()
    tasks.start_soon(fail)
    await client.post("/neighbours/authors/ada/when-told")


@culprit(rolled_back=SCOPE_LEFT, committed=SCOPE_LEFT)
async def test_timeout_that_is_never_left(db_session: AsyncSession) -> None:
    anyio.move_on_after(0.1).__enter__()
    await names(db_session)


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_exit_in_an_endpoint(client: AsyncClient) -> None:
    with pytest.raises(SystemExit):
        await client.post("/neighbours/exit")
    assert (await client.get("/neighbours/authors")).json() == []


@pytest.mark.timeout(8)
@culprit(
    rolled_back=fails("The test did not end within"), committed=fails("The test did not end within")
)
async def test_hang(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada/when-told")


@pytest.mark.timeout(8)
@culprit(
    rolled_back=fails("The test did not end within"), committed=fails("The test did not end within")
)
async def test_hang_that_swallows_its_cancellation(db_session: AsyncSession) -> None:
    db_session.add(Author(name="ada"))
    await db_session.flush()
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@culprit(
    rolled_back=fails("Write `async def test_plain_function"),
    committed=fails("Write `async def test_plain_function"),
)
def test_plain_function(db_session: AsyncSession) -> None:
    db_session.add(Author(name="ada"))


@culprit(rolled_back=SKIPS, committed=SKIPS)
async def test_skip_after_a_commit(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")
    pytest.skip("no longer wanted")


@pytest.mark.skip(reason="never wanted")
@culprit(rolled_back=SKIPS, committed=SKIPS)
async def test_skip(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")


@pytest.mark.xfail(strict=True)
@culprit(rolled_back=FAILS_AS_EXPECTED, committed=FAILS_AS_EXPECTED)
async def test_expected_failure_after_a_commit(client: AsyncClient) -> None:
    await client.post("/neighbours/authors/ada")
    assert (await client.get("/neighbours/authors")).json() == []


@culprit(rolled_back=fails("the test's own error"), committed=fails("the test's own error"))
async def test_error_amid_a_transaction(db_session: AsyncSession) -> None:
    db_session.add(Author(name="ada"))
    await db_session.flush()
    raise ValueError("the test's own error")


# ---- Real commits ----


@culprit(committed=PASSES)
async def test_committed_rows_that_refer_to_others(
    client: AsyncClient, db_session: AsyncSession
) -> None:
    author_id = (await client.post("/neighbours/authors/ada")).json()
    assert author_id == 1
    await client.post(f"/neighbours/books/notes/of/{author_id}")
    assert list(await db_session.scalars(select(Book.title))) == ["notes"]


@culprit(committed=PASSES)
async def test_committed_rows_that_migrations_have_inserted(db_session: AsyncSession) -> None:
    await db_session.execute(text("UPDATE alembic_version SET version_num = 'spoilt'"))
    await db_session.commit()


@culprit(committed=PASSES)
async def test_committed_rows_that_migrations_have_inserted_deleted(
    db_session: AsyncSession,
) -> None:
    await db_session.execute(text("DELETE FROM alembic_version"))
    await db_session.commit()


@culprit(rolled_back=PASSES, committed=PASSES)
async def test_schema_changed(db_session: AsyncSession) -> None:
    await db_session.execute(text("ALTER TABLE neighbours_books RENAME TO neighbours_volumes"))
    await db_session.execute(text("ALTER TABLE neighbours_authors ADD COLUMN born INTEGER"))
    await db_session.execute(text("CREATE TABLE of_one_test (id INTEGER)"))
    await db_session.commit()


@on("sqlite")
@culprit(committed=PASSES)
async def test_lock_of_a_thread_that_nobody_ends(
    client: AsyncClient, db_engine: AsyncEngine
) -> None:
    await client.post("/neighbours/authors/ada")

    def lock() -> None:
        connection = sqlite3.connect(
            str(db_engine.url.database), isolation_level=None, check_same_thread=False
        )
        connection.execute("BEGIN IMMEDIATE")
        kept.append(connection)

    await asyncio.to_thread(lock)


@culprit(committed=OPEN_TRANSACTION)
async def test_transaction_left_open_by_a_thread(client: AsyncClient, sync_engine: Engine) -> None:
    def lock() -> None:
        connection = sync_engine.connect()
        connection.execute(insert(Author).values(name="ada"))
        kept.append(connection)

    thread = threading.Thread(target=lock)
    thread.start()
    await asyncio.to_thread(thread.join)


@on("postgresql")
@culprit(committed=PASSES)
async def test_lock_that_the_driver_keeps(client: AsyncClient, db_engine: AsyncEngine) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    await client.post("/neighbours/authors/ada")
    url = db_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    await connection.execute("BEGIN; LOCK TABLE neighbours_authors")
    kept.append(connection)
