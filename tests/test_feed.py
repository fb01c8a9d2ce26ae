"""The example's feed, on real servers that share a PostgreSQL database."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.conftest import with_projects
from tests.rendering import Project
from tests.serving import Server, free_port, serving

ENDS_WITHIN = 180.0  # seconds
OWNERS, EVENTS = 10, 100
WRITERS = 3
"""How many clients write at once for an owner."""
LOSSES = (200, 500)
"""After this many events, the connections that the servers listen on are closed."""
LEAVES_AFTER = (30, 60)
"""After this many events, a follower leaves, and continues at the other replica."""
FOLLOWERS_OF_AN_OWNER, FOLLOWED = 10, 50
SETTINGS = {
    "ARGON2_MEMORY_KIB": "32",
    "ARGON2_TIME_COST": "1",
    "LOG_INS_PER_CLIENT": "1000",
    "DATABASE_POOL_TIMEOUT": "60",
}
RUN = """
import asyncio, os, sys
from sqlalchemy import text
from app.core.database import create_engine

async def run():
    engine = create_engine(os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        print(await connection.scalar(text(sys.argv[1])))
    await engine.dispose()

asyncio.run(run())
"""
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
COUNT = f"SELECT count(*) {OTHERS}"
END_LISTENERS = f"SELECT count(pg_terminate_backend(pid)) {OTHERS} AND query = 'SELECT 1'"


@contextmanager
def replicas(
    project: Project, directory: Path, number: int, **settings: str
) -> Iterator[tuple[str, list[Server]]]:
    """Run servers on a new database; yield its URL and the servers. They stop without an error."""
    with project.new_database() as url, ExitStack() as stack:
        project.check("uv", "run", "alembic", "upgrade", "head", DATABASE_URL=url)
        env = {**os.environ, **SETTINGS, **settings, "DATABASE_URL": url}
        servers = [
            stack.enter_context(serving(
                *(str(project.path / ".venv/bin/uvicorn"), "app.main:app", "--port", str(port)),
                cwd=project.path, port=port, log=directory / f"log{port}", env=env,
            ))
            for port in (free_port() for _ in range(number))
        ]  # fmt: skip
        yield url, servers
        for server in servers:
            said = server.stop()
            assert "Traceback" not in said, said


async def query(project: Project, url: str, statement: str) -> int:
    """Run a statement, and return the number that it selects."""
    python = str(project.path / ".venv/bin/python")
    said = await asyncio.to_thread(project.check, python, "-c", RUN, statement, DATABASE_URL=url)
    return int(said)


@dataclass
class Owner:
    """A user, and the items that followers must be told about."""

    authorization: dict[str, str]
    created: list[int] = field(default_factory=list)
    """The ids of the items."""


async def sign_up(client: httpx.AsyncClient, name: str) -> Owner:
    """Create an account."""
    account = {"email": f"{name}@example.com", "password": "correct horse battery"}
    response = await client.post("/users", json=account)
    assert response.status_code == 201, response.text
    form = {"username": account["email"], "password": account["password"]}
    token = (await client.post("/token", data=form)).json()["access_token"]
    return Owner({"Authorization": f"Bearer {token}"})


async def create(client: httpx.AsyncClient, owner: Owner, title: str) -> None:
    """Create an item of the owner."""
    response = await client.post("/items", json={"title": title}, headers=owner.authorization)
    assert response.status_code == 201, response.text
    owner.created.append(response.json()["id"])


class Follower:
    """A client that follows the feed, and keeps the events."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.is_following = asyncio.Event()
        self.events: list[tuple[int, int]] = []
        """The ids of the events and their items."""

    async def follow(self, client: httpx.AsyncClient, until: int) -> None:
        """Continue after the last received event, until it has received this many."""
        headers = dict(self.owner.authorization)
        if self.events:
            headers["Last-Event-ID"] = str(self.events[-1][0])
        event: dict[str, str] = {}
        async with client.stream("GET", "/items/feed", headers=headers) as response:
            assert response.status_code == 200
            self.is_following.set()
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name:
                    event[name] = value
                elif "data" in event:
                    self.note(int(event["id"]), json.loads(event["data"])["id"])
                    event = {}
                if len(self.events) == until:
                    return
        raise AssertionError("The stream has ended.")

    def note(self, event_id: int, item_id: int) -> None:
        """Keep an event."""
        self.events.append((event_id, item_id))

    def check(self) -> None:
        """Check that it has received all events, once each, and in order."""
        ids = [event_id for event_id, _ in self.events]
        assert ids == sorted(set(ids))
        assert sorted(item_id for _, item_id in self.events) == sorted(self.owner.created)


def client_of(server: Server) -> httpx.AsyncClient:
    """Make a client that opens as many connections as it needs."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits)


async def all_following(followers: list[Follower]) -> None:
    """Wait until all followers are connected."""
    for follower in followers:
        await follower.is_following.wait()


@with_projects(ci=["postgresql"])
def test_followers_of_a_replica_miss_nothing_of_another(project: Project, tmp_path: Path) -> None:
    with replicas(project, tmp_path, 2) as (url, servers):
        asyncio.run(check_that_nothing_is_missed(project, url, servers))
    assert "Notifications of other processes are late" in servers[0].log.read_text()


async def check_that_nothing_is_missed(project: Project, url: str, servers: list[Server]) -> None:
    async def follow(follower: Follower) -> None:
        await follower.follow(here, LEAVES_AFTER[0])
        await follower.follow(there, LEAVES_AFTER[1])
        await follower.follow(here, EVENTS)

    async def write(owner: Owner, numbers: Iterator[int]) -> None:
        for number in numbers:
            await create(there, owner, f"item {number}")

    async with client_of(servers[0]) as here, client_of(servers[1]) as there:
        owners = [await sign_up(there, f"user{number}") for number in range(OWNERS)]
        followers = [Follower(owner) for owner in owners]
        async with asyncio.timeout(ENDS_WITHIN), asyncio.TaskGroup() as tasks:
            for follower in followers:
                tasks.create_task(follow(follower))
            await all_following(followers)
            for owner in owners:
                numbers = iter(range(EVENTS))
                for _ in range(WRITERS):
                    tasks.create_task(write(owner, numbers))
            for events in LOSSES:
                while sum(len(follower.events) for follower in followers) < events:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert await query(project, url, END_LISTENERS) >= 1
    for follower in followers:
        assert len(follower.events) == EVENTS
        follower.check()


@with_projects(ci=["postgresql"])
def test_many_followers_share_a_connection(project: Project, tmp_path: Path) -> None:
    one = {"DATABASE_POOL_SIZE": "1", "DATABASE_MAX_OVERFLOW": "0"}
    with replicas(project, tmp_path, 1, **one) as (url, [server]):
        asyncio.run(check_that_many_share_a_connection(project, url, server))


async def check_that_many_share_a_connection(project: Project, url: str, server: Server) -> None:
    async with client_of(server) as client:
        owners = [await sign_up(client, f"user{number}") for number in range(FOLLOWED)]
        followers = [Follower(owner) for owner in FOLLOWERS_OF_AN_OWNER * owners]
        assert await query(project, url, COUNT) == 1  # the one for requests
        async with asyncio.timeout(ENDS_WITHIN), asyncio.TaskGroup() as tasks:
            for follower in followers:
                tasks.create_task(follower.follow(client, 2))
            await all_following(followers)
            for owner in owners:
                await create(client, owner, "A lamp")
            while not all(follower.events for follower in followers):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert await query(project, url, COUNT) == 2
            for owner in owners:
                await create(client, owner, "A desk")
    for follower in followers:
        follower.check()
