"""The fixtures for every test. Add your own to tests/fixtures.py."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.asgi import IsolatedApp, RunningApp, running
from tests.harness.databases import Databases
from tests.harness.isolation import Isolation, isolation_of
from tests.harness.jobs import JobQueue
from tests.harness.leftovers import in_own_task
from tests.harness.live_server import serve
from tests.harness.transaction import RolledBackTransaction
from tests.http_client import ASGIWebSocketTransport, AsyncClient

if TYPE_CHECKING:  # imported after the environment is set up
    from app.settings import Settings

MakeClient = Callable[..., Awaitable[AsyncClient]]

pytest_plugins = [
    "tests.harness.network",
    "tests.harness.plugin",
    "tests.harness.queries",
    "tests.harness.standalone",
    "tests.fixtures",
]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The anyio backend of all async tests and fixtures. `db_engine` keeps its event loop open."""
    return "asyncio"


@pytest.fixture(scope="session")
async def db_engine(databases: Databases) -> AsyncIterator[AsyncEngine]:
    """The engine on the migrated test database; each worker has its own."""
    async with databases.shared() as engine:
        yield engine


@pytest.fixture(scope="session")
async def running_app(
    db_engine: AsyncEngine, settings: "Settings", rolled_back_transaction: RolledBackTransaction
) -> AsyncIterator[RunningApp]:
    """The application, started once for all tests."""
    from app.main import create_app

    async with running(create_app(settings)) as running_app:
        with running_app.bound_to(rolled_back_transaction.engine):
            yield running_app


@pytest.fixture
async def isolation(
    request: pytest.FixtureRequest,
    databases: Databases,
    rolled_back_transaction: RolledBackTransaction,
) -> AsyncIterator[Isolation]:
    """A transaction that is rolled back; with the marker `committed`, a cleaned database."""
    isolation = isolation_of(request.node, databases, rolled_back_transaction)
    async with isolation.around_test():
        yield isolation


@pytest.fixture
def app(running_app: RunningApp, isolation: Isolation) -> Iterator[FastAPI]:
    """The application under test; it is restored after each test."""
    with isolation.installed(running_app), running_app.restored():
        yield running_app.app


@pytest.fixture
async def db_session(isolation: Isolation) -> AsyncIterator[AsyncSession]:
    """A session on the data that the application reads and writes."""
    async with isolation.session() as session:
        yield session


@pytest.fixture
async def make_client(
    app: FastAPI, running_app: RunningApp, isolation: Isolation
) -> AsyncIterator[MakeClient]:
    """Creates more clients: with other headers, a log-in, or `raise_app_exceptions=False`.

    All other options go to AsyncClient.
    """
    asgi_app = IsolatedApp(running_app, isolation)
    async with AsyncExitStack() as clients:

        async def make(*, raise_app_exceptions: bool = True, **options: Any) -> AsyncClient:
            transport = ASGIWebSocketTransport(
                app=asgi_app, raise_app_exceptions=raise_app_exceptions
            )
            options = {"base_url": "http://test", **options}
            client = AsyncClient(transport=transport, **options)
            await clients.enter_async_context(in_own_task(client))
            return client

        yield make


@pytest.fixture
async def client(make_client: MakeClient) -> AsyncClient:
    """A client that calls the application over ASGI: no socket, in the test's event loop.

    Exceptions that the application does not handle are raised in the test.
    """
    return await make_client()


@pytest.fixture
def job_queue(app: FastAPI, running_app: RunningApp, isolation: Isolation) -> JobQueue:
    """The jobs that the application has written: `written(job)` and `run()`."""
    return JobQueue(running_app, isolation)


@pytest.fixture
async def live_server(
    app: FastAPI, running_app: RunningApp, isolation: Isolation
) -> AsyncIterator[str]:
    """The URL of the application on a local port, served in the test's event loop.

    For tests that need a socket: endless streams, clients that disconnect, other programs.
    """
    async with serve(IsolatedApp(running_app, isolation)) as url:
        yield url
