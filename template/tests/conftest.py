"""The fixtures that every test can ask for. Add your own to tests/fixtures.py."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.harness.asgi import IsolatedApp, RunningApp, running
from tests.harness.databases import Databases
from tests.harness.isolation import Isolation, isolation_of
from tests.harness.leftovers import in_own_task
from tests.harness.live_server import serve
from tests.harness.transaction import RolledBackTransaction
from tests.http_client import ASGIWebSocketTransport, AsyncClient

if TYPE_CHECKING:  # imported when the environment is the tests'
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
    """The backend of all async tests and fixtures. `db_engine` keeps its loop for the whole run."""
    return "asyncio"


@pytest.fixture(scope="session")
async def db_engine(databases: Databases) -> AsyncIterator[AsyncEngine]:
    """The engine on the test database, migrated to head; each worker has its own."""
    async with databases.shared() as engine:
        yield engine


@pytest.fixture(scope="session")
async def running_app(
    db_engine: AsyncEngine, settings: "Settings", rolled_back_transaction: RolledBackTransaction
) -> AsyncIterator[RunningApp]:
    """The application, its lifespan begun, once for all tests."""
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
    """A transaction that is rolled back; marked with `committed`, a database that is cleaned."""
    isolation = isolation_of(request.node, databases, rolled_back_transaction)
    async with isolation.around_test():
        yield isolation


@pytest.fixture
def app(running_app: RunningApp, isolation: Isolation) -> Iterator[FastAPI]:
    """The application under test; what a test does to it is undone after the test."""
    with isolation.installed(running_app), running_app.restored():
        yield running_app.app


@pytest.fixture
async def db_session(isolation: Isolation) -> AsyncIterator[AsyncSession]:
    """A session on what the application reads and writes."""
    async with isolation.session() as session:
        yield session


@pytest.fixture
async def make_client(
    app: FastAPI, running_app: RunningApp, isolation: Isolation
) -> AsyncIterator[MakeClient]:
    """Makes more clients: with other headers, a login, or `raise_app_exceptions=False`.

    The other options are those of AsyncClient.
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
    """A client of the application over ASGI: no socket, the test's own loop.

    What the application raises and does not handle is raised in the test.
    """
    return await make_client()


@pytest.fixture
async def live_server(
    app: FastAPI, running_app: RunningApp, isolation: Isolation
) -> AsyncIterator[str]:
    """The URL of the application on a port of its own, served in the test's loop.

    For what needs a socket: streams without an end, clients that go away, other programs.
    """
    async with serve(IsolatedApp(running_app, isolation)) as url:
        yield url
