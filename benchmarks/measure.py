"""Measure what isolation costs. Runs in a rendered project: see isolation.py.

Every scheme serves the same requests to the same probe application, in one process and on one
event loop. Prints one line of JSON.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import Column, Engine, ForeignKey, Integer, String, Table, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.application import build_app
from app.settings import Settings
from tests.harness.asgi import IsolatedApp, RunningApp, running
from tests.harness.databases import Databases, open_engine
from tests.harness.guard import guard, listening
from tests.harness.isolation import Committed, Isolation, RolledBack
from tests.harness.leftovers import in_own_task
from tests.harness.plugin import open_databases, watched
from tests.harness.transaction import RolledBackTransaction
from tests.harness.variables import Variables
from tests.http_client import ASGIWebSocketTransport
from tests.isolation.probe import Note, ProbeBase, router

MANY_TESTS, PART = 5000, 100
WARM_UP, IN_A_ROW = 10, 5
SHUFFLE = random.Random(0).shuffle
GATHERED, OBJECTS = 1000, 20_000
REPEATED = 5
"""How often what takes seconds is measured."""


def add_tables() -> None:
    """Make as many tables as BENCHMARK_TABLES says, of which each ten refer to another one."""
    tables = [Note.__table__]
    for number in range(1, int(os.environ["BENCHMARK_TABLES"])):
        table = Table(
            f"benchmark_{number:03}",
            ProbeBase.metadata,
            Column("id", Integer, primary_key=True),
            Column("name", String(50), unique=True),
            Column("other_id", ForeignKey(tables[number // 10].c.id), index=True),
        )
        tables.append(table)


async def write_and_read(client: AsyncClient) -> None:
    """Be the test: write through the API, and read what was written."""
    response = await client.post("/probe/notes/a")
    assert response.status_code == 200, response.text
    response = await client.get("/probe/notes")
    assert response.json() == ["a"]


@asynccontextmanager
async def plain_client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """Give the client that FastAPI's documentation shows."""
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        yield client


@asynccontextmanager
async def isolated_client(app: RunningApp, isolation: Isolation) -> AsyncIterator[AsyncClient]:
    """Give what the fixtures `isolation`, `app`, `make_client` and `client` give."""
    async with isolation.around_test(), AsyncExitStack() as clients:
        with isolation.installed(app), app.restored():
            transport = ASGIWebSocketTransport(app=IsolatedApp(app, isolation))
            client = AsyncClient(transport=transport, base_url="http://test")
            await clients.enter_async_context(in_own_task(client))
            yield client


@dataclass(frozen=True)
class OneAfterTheOther:
    """An application that serves one request at a time."""

    app: ASGIApp
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve when it is the request's turn."""
        async with self.turn:
            await self.app(scope, receive, send)


@contextmanager
def counted_statements() -> Iterator[Callable[[], int]]:
    """Give the number of statements so far, BEGIN, COMMIT and ROLLBACK included."""
    statements: list[str] = []

    def on_cursor(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):  # which the listener for SQLite executes
            statements.append(statement)

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": on_cursor,
        "begin": lambda _: statements.append("BEGIN"),
        "commit": lambda _: statements.append("COMMIT"),
        "rollback": lambda _: statements.append("ROLLBACK"),
    }
    with listening(Engine, listeners):
        yield lambda: len(statements)


@dataclass(eq=False)
class Scheme:
    """A way to keep tests apart."""

    test: Callable[[], Awaitable[None]]
    """One test with all that is done for it."""
    engine: AsyncEngine
    """What the application is bound to, unless the scheme does that."""
    tidy: Callable[[], Awaitable[None]] | None = None
    """What is no part of the scheme, nor of its time."""
    is_slow: bool = False
    """Whether it is measured less often than the others."""
    is_guarded: bool = False
    """Whether the harness watches, as it does in its own tests."""
    times: list[float] = field(default_factory=list)

    async def run(self, app: RunningApp) -> float:
        """Run one test and return the milliseconds that it took."""
        [taken] = await self.run_in_a_row(app, 1)
        return taken

    async def run_in_a_row(self, app: RunningApp, runs: int) -> list[float]:
        """Run several tests."""
        times = []
        with guard.watching() if self.is_guarded else nullcontext(), app.bound_to(self.engine):
            for _ in range(runs):
                start = time.perf_counter()
                await self.test()
                times.append(1000 * (time.perf_counter() - start))
                if self.tidy is not None:
                    await self.tidy()
        return times

    async def statements(self, app: RunningApp) -> int:
        """Count the statements of one test."""
        with counted_statements() as counted:
            await self.run(app)
            return counted()


@dataclass
class Bench:
    """The application and the databases that all schemes share."""

    databases: Databases
    engine: AsyncEngine
    app: RunningApp
    transaction: RolledBackTransaction
    stack: AsyncExitStack

    async def new_engine(self) -> AsyncEngine:
        """Return an engine on a database of its own."""
        return await self.stack.enter_async_context(self.databases.copy())

    def isolated(self, way: type[Isolation]) -> Scheme:
        """Do as tests/conftest.py does."""

        async def test() -> None:
            isolation = way(self.databases, self.transaction, guard)
            async with isolated_client(self.app, isolation) as client:
                await watched(write_and_read, Variables().run, 30)(client=client)

        return Scheme(test, self.engine, is_guarded=True)

    def recipe(self) -> Scheme:
        """Do as SQLAlchemy documents it: all sessions join one connection's transaction."""

        async def test() -> None:
            async with self.recipe_client() as client:
                await write_and_read(client)

        return Scheme(test, self.engine)

    @asynccontextmanager
    async def recipe_client(self) -> AsyncIterator[AsyncClient]:
        """Give a client whose requests work in one transaction, one after the other."""
        factory: async_sessionmaker[AsyncSession] = self.app.app.state.session_factory
        async with self.engine.connect() as connection:
            transaction = await connection.begin()
            factory.configure(bind=connection, join_transaction_mode="create_savepoint")
            transport = ASGITransport(app=OneAfterTheOther(self.app.app))
            async with AsyncClient(transport=transport, base_url="http://test") as client:
                yield client
            factory.configure(bind=self.engine, join_transaction_mode="conditional_savepoint")
            await transaction.rollback()

    async def plain_test(self) -> None:
        """Do without any isolation."""
        async with plain_client(self.app.app) as client:
            await write_and_read(client)

    async def no_isolation(self) -> Scheme:
        """Leave the rows behind. They are deleted between the tests, so that all are alike."""
        engine = await self.new_engine()

        async def delete() -> None:
            async with engine.begin() as connection:
                await connection.execute(Note.__table__.delete())

        return Scheme(self.plain_test, engine, delete)

    async def tables_per_test(self) -> Scheme:
        """Create all tables before the test, drop them after it."""
        engine = await self.new_engine()
        async with engine.begin() as connection:
            await connection.run_sync(ProbeBase.metadata.drop_all)

        async def test() -> None:
            async with engine.begin() as connection:
                await connection.run_sync(ProbeBase.metadata.create_all)
            await self.plain_test()
            async with engine.begin() as connection:
                await connection.run_sync(ProbeBase.metadata.drop_all)

        return Scheme(test, engine, is_slow=True)

    async def emptied(self, *statements: str) -> Scheme:
        """Empty all tables after the test."""
        engine = await self.new_engine()

        async def test() -> None:
            await self.plain_test()
            async with engine.begin() as connection:
                for statement in statements:
                    await connection.execute(text(statement))

        return Scheme(test, engine, is_slow=True)

    async def engine_per_test(self) -> Scheme:
        """Make an engine for the test, and no more: the rows are left behind."""
        plain = await self.no_isolation()

        async def test() -> None:
            async with open_engine(plain.engine.url) as engine:
                with self.app.bound_to(engine):
                    await self.plain_test()

        return Scheme(test, plain.engine, plain.tidy)

    def database_per_test(self) -> Scheme:
        """Copy the database for the test."""

        async def test() -> None:
            async with self.databases.copy() as engine:
                with self.app.bound_to(engine):
                    await self.plain_test()

        return Scheme(test, self.engine, is_slow=True)

    async def schemes(self) -> dict[str, Scheme]:
        """Return all schemes by their names."""
        tables = [table.name for table in reversed(ProbeBase.metadata.sorted_tables)]
        schemes = {
            "no isolation": await self.no_isolation(),
            "rolled back": self.isolated(RolledBack),
            "committed": self.isolated(Committed),
            "SQLAlchemy's recipe": self.recipe(),
            "create_all, drop_all": await self.tables_per_test(),
            "TRUNCATE": await self.emptied(f"TRUNCATE {', '.join(tables)}"),
            "DELETE": await self.emptied(*(f"DELETE FROM {table}" for table in tables)),
            "an engine per test": await self.engine_per_test(),
            "a database copy per test": self.database_per_test(),
        }
        if self.engine.dialect.name == "sqlite":
            del schemes["TRUNCATE"]
        return schemes

    async def compare(self, schemes: Sequence[Scheme], runs: int) -> list[float]:
        """Run all schemes in turn, each time in another order, slow ones each tenth time.

        Return their medians.

        The first run of each turn does not count: it finds the caches full of something else.
        """
        for scheme in schemes:
            await scheme.run_in_a_row(self.app, WARM_UP)
        for turn in range(runs // IN_A_ROW):
            order = [scheme for scheme in schemes if not scheme.is_slow or turn % 10 == 0]
            SHUFFLE(order)
            for scheme in order:
                scheme.times += (await scheme.run_in_a_row(self.app, 1 + IN_A_ROW))[1:]
        return [median(scheme.times) for scheme in schemes]

    async def compare_schemes(self, runs: int) -> dict[str, Any]:
        """Return what a test costs by scheme: milliseconds, statements."""
        schemes = await self.schemes()
        medians = await self.compare(list(schemes.values()), runs)
        return {
            name: {"ms": taken, "statements": await scheme.statements(self.app)}
            for (name, scheme), taken in zip(schemes.items(), medians, strict=True)
        }

    async def compare_gathered(self) -> dict[str, Any]:
        """Return what many requests at once take in a rolled-back test, and in the recipe."""

        async def gather(client: AsyncClient) -> float:
            start = time.perf_counter()
            requests = (client.post(f"/probe/notes/{number}") for number in range(GATHERED))
            responses = await asyncio.gather(*requests)
            assert {response.status_code for response in responses} == {200}
            return time.perf_counter() - start

        pairs = []
        for _ in range(REPEATED):
            async with self.recipe_client() as client:
                recipe = await gather(client)
            isolation = RolledBack(self.databases, self.transaction, guard)
            with guard.watching():
                async with isolated_client(self.app, isolation) as client:
                    pairs.append((await gather(client), recipe))
        return {"requests": GATHERED, "ratio": median(ours / recipe for ours, recipe in pairs)}

    async def compare_objects(self) -> dict[str, Any]:
        """Return what requests take while the test holds many objects, and while it holds none."""
        isolation = RolledBack(self.databases, self.transaction, guard)

        async def request(client: AsyncClient) -> float:
            start = time.perf_counter()
            for _ in range(10):
                await client.get("/livez")
            return time.perf_counter() - start

        without, held = [], []
        with guard.watching():
            async with (
                isolated_client(self.app, isolation) as client,
                isolation.session() as session,
            ):
                session.add_all(Note(name=str(number)) for number in range(OBJECTS))
                await session.commit()
                session.expunge_all()
                for _ in range(10 * REPEATED):
                    without.append(await request(client))
                    notes = (await session.scalars(select(Note))).all()
                    held.append(await request(client))
                    assert len(notes) == OBJECTS
                    session.expunge_all()
        return {"objects": OBJECTS, "ratio": median(held) / median(without)}

    async def compare_lengths(self, tests: int) -> dict[str, Any]:
        """Run many tests: return what the first cost and what the last, and what was kept.

        The first and the last take turns with the same requests without isolation: the ratio
        tells what the harness has gathered from how busy the machine is.
        """
        plain, rolled_back = await self.no_isolation(), self.isolated(RolledBack)
        await self.compare([plain, rolled_back], IN_A_ROW)
        kept = []
        parts: dict[int, list[tuple[float, float]]] = {PART: [], tests: []}
        for number in range(1, tests + 1):
            taken = await rolled_back.run(self.app)
            for end, pairs in parts.items():
                if end - PART < number <= end:
                    pairs.append((taken, await plain.run(self.app)))
            if number in parts:
                gc.collect()
                kept.append(len(gc.get_objects()))
        return {
            "tests": tests,
            "objects": (kept[1] - kept[0]) / (tests - PART),
            "ms": [median(taken for taken, _ in pairs) for pairs in parts.values()],
            "ratios": [median(taken / base for taken, base in pairs) for pairs in parts.values()],
        }


async def measure(database: str, *, all_of_it: bool, quick: bool) -> dict[str, Any]:
    """Measure on one database: the schemes, or `all_of_it`."""
    add_tables()
    runs = 50 if quick else 300
    async with AsyncExitStack() as stack:
        databases = await stack.enter_async_context(open_databases(database))
        engine = await stack.enter_async_context(databases.shared())
        url = engine.url.render_as_string(hide_password=False)
        settings = Settings(
            _env_file=None,
            environment="test",
            log_level="WARNING",
            database_url=url,
            secret_key="only-the-tests-sign-with-this-secret-key",
        )
        app = build_app(settings, no_lifespan)
        app.include_router(router)
        guard.database = Path(str(engine.url.database)).name
        transaction = RolledBackTransaction(engine, guard)
        stack.push_async_callback(transaction.disconnect)
        running_app = await stack.enter_async_context(running(app))
        bench = Bench(databases, engine, running_app, transaction, stack)
        found: dict[str, Any] = {"runs": runs, "schemes": await bench.compare_schemes(runs)}
        if all_of_it:
            found["lengths"] = await bench.compare_lengths(500 if quick else MANY_TESTS)
            found["gathered"] = await bench.compare_gathered()
            found["objects"] = await bench.compare_objects()
        return found


@asynccontextmanager
async def no_lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Begin and end nothing."""
    yield {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("database", choices=["sqlite", "postgresql"])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    found = asyncio.run(measure(chosen.database, all_of_it=chosen.all, quick=chosen.quick))
    print(json.dumps(found))
