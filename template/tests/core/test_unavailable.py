"""What clients and the log are told if the database is down, too slow or full."""

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import PlainTextResponse
from sqlalchemy import Integer, TypeDecorator, literal, select, text
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.exceptions import HTTPException as StarletteHTTPException

from app.core.database import complete_options, create_engine
from app.core.problems import add_problem_details
from app.core.unavailable import DatabaseFullError, DatabaseUnavailableError, tell_apart
from app.settings import Settings
from tests.harness.databases import Databases
from tests.http_client import AsyncClient, WebSocketDisconnect, connect_websocket

NO_ANSWER = {"detail": "The database does not answer"}
UNAVAILABLE = DatabaseUnavailableError("SELECT secret", None, ConnectionError("gone\nfor good"))
FULL = DatabaseFullError("INSERT secret", None, OSError("full"))


@pytest.fixture
def failing(app: FastAPI) -> list[Exception]:
    """The errors that the endpoint /failing raises."""
    errors: list[Exception] = []

    @app.get("/failing")
    async def fail() -> None:
        raise errors[0]

    @app.websocket("/failing")
    async def fail_socket(websocket: WebSocket) -> None:
        raise errors[0]

    return errors


@pytest.mark.parametrize("error", [UNAVAILABLE, PoolTimeoutError("gone")])
async def test_client_is_told_to_try_again(
    client: AsyncClient,
    failing: list[Exception],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing.append(error)
    response = await client.get("/failing")
    assert response.status_code == 503
    assert response.json() == NO_ANSWER
    assert int(response.headers["retry-after"]) > 0
    assert caplog.messages == ["The database does not answer: gone"]


async def test_client_is_told_that_the_disk_is_full(
    client: AsyncClient, failing: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    failing.append(FULL)
    response = await client.get("/failing")
    assert response.status_code == 507
    assert response.json() == {"detail": "The database has no space left"}
    assert "retry-after" not in response.headers
    assert caplog.messages == ["The database has no space left: full"]


async def test_client_gets_problem_details_where_others_are(
    app: FastAPI, client: AsyncClient, failing: list[Exception]
) -> None:
    add_problem_details(app)
    failing.append(UNAVAILABLE)
    response = await client.get("/failing")
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["detail"] == NO_ANSWER["detail"]


@pytest.mark.parametrize(
    "kind", [503, HTTPException, StarletteHTTPException], ids=["status", "fastapi", "starlette"]
)
async def test_client_gets_what_the_application_makes_of_it(
    app: FastAPI, client: AsyncClient, failing: list[Exception], kind: Any
) -> None:
    @app.exception_handler(kind)
    def answer(_: Request, error: HTTPException) -> PlainTextResponse:
        return PlainTextResponse(error.detail, error.status_code, error.headers)

    failing.append(UNAVAILABLE)
    response = await client.get("/failing")
    assert response.text == NO_ANSWER["detail"]
    assert response.status_code == 503


async def test_websocket_is_closed(client: AsyncClient, failing: list[Exception]) -> None:
    failing.append(UNAVAILABLE)
    with pytest.raises(WebSocketDisconnect) as closed:
        async with connect_websocket(client, "/failing"):
            pass
    assert closed.value.code == 1013


@pytest.fixture
async def engine(databases: Databases) -> AsyncIterator[AsyncEngine]:
    """The engine on a database for this test alone."""
    async with databases.copy() as engine:
        yield engine


@contextmanager
def raised(kind: type[DBAPIError]) -> Iterator[None]:
    """Expect an error of exactly this class."""
    with pytest.raises(kind) as error:
        yield
    assert error.type is kind


async def test_errors_of_statements_stay_what_they_are(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as error:
            await connection.execute(text("SELECT * FROM no_such_table"))
    assert not isinstance(error.value, DatabaseUnavailableError | DatabaseFullError)


async def test_error_of_a_type_is_not_taken_for_one_of_the_connection(engine: AsyncEngine) -> None:
    class Unreadable(TypeDecorator[int]):
        impl = Integer
        cache_ok = True

        def process_bind_param(self, value: Any, dialect: Any) -> Any:
            raise FileNotFoundError(errno.ENOENT, "no such key")

    async with engine.connect() as connection:
        with pytest.raises(StatementError) as error:
            await connection.execute(select(literal(1, Unreadable)))
    assert error.type is StatementError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("too late"), DatabaseUnavailableError),
        (asyncio.CancelledError(), None),
        (ValueError("wrong"), None),
    ],
)
def test_error_of_the_driver_itself_is_one_of_the_connection(
    error: BaseException, expected: type[DBAPIError] | None
) -> None:
    context: Any = SimpleNamespace(
        original_exception=error,
        sqlalchemy_exception=None,
        connection=object(),
        engine=None,
        statement="SELECT 1",
        parameters=None,
        is_disconnect=False,
        is_pre_ping=False,
    )
    named = tell_apart(context)
    assert context.is_disconnect is (expected is not None)
    assert (named and type(named)) is expected
    context.is_pre_ping = True
    assert tell_apart(context) is None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("53100", DatabaseFullError),
        ("57014", DatabaseUnavailableError),
        ("55P03", DatabaseUnavailableError),
        ("57P01", DatabaseUnavailableError),
        ("40P01", DBAPIError),
    ],
)
async def test_errors_of_postgresql_are_told_apart(
    engine: AsyncEngine, state: str, expected: type[DBAPIError]
) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("these are PostgreSQL's")
    raise_error = f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"
    async with engine.connect() as connection:
        with raised(expected):
            await connection.execute(text(raise_error))


async def test_client_waits_no_longer_than_it_may_for_postgresql(
    engine: AsyncEngine,
) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite is in the process itself")
    url = engine.url.render_as_string(hide_password=False)
    impatient = create_engine(url, connect_args={"command_timeout": 0.05})
    async with impatient.connect() as connection:
        with raised(DatabaseUnavailableError):
            await connection.execute(text("SELECT pg_sleep(60)"))
        assert connection.invalidated  # or it would wait for the statement to finish
    await impatient.dispose()


async def test_statement_of_postgresql_ends_in_time(
    engine: AsyncEngine, settings: Settings
) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite is in the process itself")
    url = engine.url.render_as_string(hide_password=False)
    limited = settings.model_copy(update={"database_statement_timeout": 0.05})
    own = {"connect_args": {"server_settings": {"application_name": "own", "lock_timeout": "7s"}}}
    impatient = create_engine(url, **complete_options(own, limited))
    async with impatient.connect() as connection:
        with raised(DatabaseUnavailableError):
            await connection.execute(text("SELECT pg_sleep(60)"))
        await connection.rollback()
        assert await connection.scalar(text("SHOW application_name")) == "own"
        assert await connection.scalar(text("SHOW lock_timeout")) == "7s"
    await impatient.dispose()


async def test_connection_that_the_server_has_closed_is_replaced(engine: AsyncEngine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite is in the process itself")
    async with engine.connect() as connection:
        first = await connection.get_raw_connection()
        driver_connection = first.driver_connection
    assert driver_connection is not None
    driver_connection.terminate()
    async with engine.connect() as connection:
        assert await connection.scalar(select(1)) == 1


async def test_locked_sqlite_is_unavailable(engine: AsyncEngine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL locks rows")
    url = engine.url.render_as_string()
    impatient = create_engine(url, connect_args={"timeout": 0.01})
    async with engine.begin() as writer:
        await writer.execute(text("CREATE TABLE things (id INTEGER)"))
        async with impatient.connect() as connection:
            with raised(DatabaseUnavailableError):
                await connection.execute(text("SELECT 1"))
    await impatient.dispose()


async def test_full_sqlite_is_full_and_loses_nothing(engine: AsyncEngine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has no limit of its own")
    insert = text("INSERT INTO things VALUES (randomblob(100000))")
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE things (content BLOB)"))
        await connection.execute(insert)
        await connection.commit()
        pages = await connection.scalar(text("PRAGMA page_count"))
        await connection.execute(text(f"PRAGMA max_page_count = {pages}"))
        with raised(DatabaseFullError):
            await connection.execute(insert)
        await connection.rollback()
        assert await connection.scalar(text("SELECT count(*) FROM things")) == 1


async def test_database_that_cannot_be_reached_is_unavailable(db_engine: AsyncEngine) -> None:
    if db_engine.dialect.name == "sqlite":
        gone = db_engine.url.set(database="/no/such/directory/test.db")
    else:
        gone = db_engine.url.set(host="127.0.0.1", port=1, query={})
    engine = create_engine(gone.render_as_string(hide_password=False))
    with raised(DatabaseUnavailableError):
        await engine.connect()
    await engine.dispose()
