"""The service against the bare application: throughput, round trips, start, memory and pages."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.projects import median_ratio, medians
from benchmarks.traffic import Client, Load, Request, load, send
from tests.rendering import Project
from tests.serving import free_port

BARE = Path(__file__).with_name("bare") / "main.py"
COUNTING = Path(__file__).with_name("counting")
ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery"}
CLIENTS = 16
ENVIRONMENT = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "a-key-that-nobody-else-knows-0123456789",
    "ARGON2_MEMORY_KIB": "32",
    "ARGON2_TIME_COST": "1",
}
OURS, THEIRS = "this template", "bare FastAPI"


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int

    def memory(self) -> int:
        """Return the bytes that the server has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Contest:
    """A project, a migrated database with a user and items, and both applications on it."""

    project: Project
    url: str
    rounds: int

    @contextmanager
    def serving(self, name: str, **env: str) -> Iterator[Server]:
        """Serve one of the two, as `fastapi run` does."""
        port = free_port()
        fastapi = str(self.project.path / ".venv/bin/fastapi")
        app = ["--app", "app", str(BARE)] if name == THEIRS else []
        audience = {"TOKEN_AUDIENCE": "my-service"}
        with subprocess.Popen(
            [fastapi, "run", *app, "--host", "127.0.0.1", "--port", str(port)],
            cwd=self.project.path,
            env={**os.environ, **ENVIRONMENT, **audience, "DATABASE_URL": self.url, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield Server(process, port)
            finally:
                process.terminate()
                process.wait(20)

    async def answered(self, server: Server) -> None:
        """Wait for the first 200."""
        while True:
            client = Client(server.port)
            try:
                status, _ = await client.send(Request("GET", "/livez").encoded())
            except OSError:
                if server.process.poll() is not None:
                    raise RuntimeError("The server has ended") from None
                await asyncio.sleep(0.002)
                continue
            client.close()
            if status == 200:
                return

    async def token(self) -> str:
        """Sign up, unless that was done, log in, and store a few items."""
        with self.serving(OURS) as server:
            await self.answered(server)
            form = f"username={ACCOUNT['email'].replace('@', '%40')}&password=" + ACCOUNT[
                "password"
            ].replace(" ", "+")
            log_in = Request("POST", "/token", form=form)
            await send(server.port, Request("POST", "/users", body=ACCOUNT))
            token: str = (await send(server.port, log_in))["access_token"]
            for number in range(100):
                item = {"title": f"Lamp {number}", "tags": [{"name": "old"}, {"name": "red"}]}
                await send(server.port, Request("POST", "/items", token, item))
            return token

    async def throughput(self, token: str, number: int) -> list[dict[str, Any]]:
        """Compare throughput and the 99th percentile, and count round trips."""
        requests = {
            "read one": Request("GET", "/items/1", token),
            "list a page": Request("GET", "/items?limit=50", token),
            "create": Request("POST", "/items", token, {"title": "Lamp"}),
        }
        found = []
        for what, request in requests.items():
            loads: dict[str, list[Load]] = {OURS: [], THEIRS: []}
            trips = {name: await self.round_trips(name, request) for name in loads}
            for number_of_round in range(self.rounds):
                names = list(loads) if number_of_round % 2 else list(loads)[::-1]
                for name in names:
                    with self.serving(name) as server:
                        await self.answered(server)
                        await load(server.port, request, clients=CLIENTS, number=number // 10)
                        loads[name].append(
                            await load(server.port, request, clients=CLIENTS, number=number)
                        )
            found.append(
                {
                    "database": self.project.database,
                    "what": what,
                    "per_second": {
                        name: median(each.per_second for each in taken)
                        for name, taken in loads.items()
                    },
                    "throughput": median_ratio(
                        [each.per_second for each in loads[OURS]],
                        [each.per_second for each in loads[THEIRS]],
                    ),
                    "p99": median_ratio(
                        [each.p99_ms for each in loads[OURS]],
                        [each.p99_ms for each in loads[THEIRS]],
                    ),
                    "round_trips": trips,
                }
            )
        return found

    async def round_trips(self, name: str, request: Request) -> int:
        """Count what a request sends to the database, when the connections are open."""
        log, times = self.project.path / "round-trips", 10
        log.unlink(missing_ok=True)
        env = {"PYTHONPATH": str(COUNTING), "COUNT_ROUND_TRIPS": str(log)}
        with self.serving(name, **env) as server:
            await self.answered(server)
            sent = []
            for _ in range(2):
                for _ in range(times):
                    await send(server.port, request)
                sent.append(len(log.read_text(encoding="utf-8").splitlines()))
        return round((sent[1] - sent[0]) / times)

    async def start(self) -> dict[str, Any]:
        """Compare the time to the first 200."""
        times: dict[str, list[float]] = {OURS: [], THEIRS: []}
        for number_of_round in range(self.rounds + 1):
            for name, taken in times.items():
                start = time.perf_counter()
                with self.serving(name) as server:
                    await self.answered(server)
                    if number_of_round:  # after the first one, the files are in memory
                        taken.append(time.perf_counter() - start)
        return {
            "database": self.project.database,
            "seconds": medians(times),
            "ratio": median_ratio(times[OURS], times[THEIRS]),
        }

    async def memory(self, token: str, few: int, many: int) -> dict[str, Any]:
        """Compare the memory of the service after few requests and after many."""
        request = Request("GET", "/items/1", token)
        with self.serving(OURS) as server:
            await self.answered(server)
            await load(server.port, request, clients=CLIENTS, number=few)
            before = server.memory()
            await load(server.port, request, clients=CLIENTS, number=many - few)
            after = server.memory()
        return {
            "database": self.project.database,
            "requests": [few, many],
            "megabytes": [before / 2**20, after / 2**20],
            "ratio": after / before,
        }

    async def pages(self, token: str) -> dict[str, Any]:
        """Compare page 1,000 of a million rows with page 1; alone on the server."""
        with self.serving(OURS) as server:
            await self.answered(server)
            deep = ""
            for _ in range(250):  # 50,000 rows: 1,000 pages of 50
                page = await send(server.port, Request("GET", f"/items?limit=200{deep}", token))
                deep = f"&cursor={page['next_cursor'].replace('=', '%3D')}"
            times: dict[str, list[float]] = {"": [], deep: []}
            for _ in range(self.rounds * 40):
                for cursor, taken in times.items():
                    one = await load(
                        server.port,
                        Request("GET", f"/items?limit=50{cursor}", token),
                        clients=1,
                        number=1,
                    )
                    taken.append(one.p99_ms)
        return {
            "database": self.project.database,
            "ms": [median(taken) for taken in times.values()],
            "ratio": median(times[deep]) / median(times[""]),
        }

    def insert(self, rows: int) -> None:
        """Give the user many items."""
        print(run_python(self.project, INSERT, DATABASE_URL=self.url, ROWS=str(rows)), end="")


INSERT = """
import asyncio, os
from datetime import UTC, datetime
from sqlalchemy import insert
from app.core.database import create_engine
from app.items.models import Item

async def fill():
    engine = create_engine(os.environ["DATABASE_URL"])
    row = {"owner_id": 1, "title": "Lamp", "price": 1, "status": "owned"}
    for start in range(0, int(os.environ["ROWS"]), 10_000):
        async with engine.begin() as connection:
            await connection.execute(insert(Item), [row] * 10_000)
    await engine.dispose()

asyncio.run(fill())
"""


def run_python(project: Project, code: str, **env: str) -> str:
    """Run code with the packages of the project."""
    python = str(project.path / ".venv/bin/python")
    done = project.run(python, "-c", code, timeout=1800, **ENVIRONMENT, **env)
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    return done.stdout


@contextmanager
def migrated(project: Project, rounds: int) -> Iterator[Contest]:
    """Yield both applications on a new database of a project."""
    with project.new_database() as url:
        alembic = str(project.path / ".venv/bin/alembic")
        project.check(alembic, "upgrade", "head", **ENVIRONMENT, DATABASE_URL=url)
        yield Contest(project, url, rounds)


async def compare(project: Project, rounds: int, *, number: int, rows: int) -> dict[str, Any]:
    """Time the service on the database of a project."""
    with migrated(project, rounds) as contest:
        token = await contest.token()
        found: dict[str, Any] = {"start": await contest.start()}
        found["throughput"] = await contest.throughput(token, number)
        contest.insert(rows)
        found["pages"] = {**await contest.pages(token), "rows": rows}
        return found


async def compare_memory(projects: dict[str, Project], few: int, many: int) -> dict[str, Any]:
    """Compare the memory after few requests and after many; on both databases at once."""

    async def compare_on(project: Project) -> dict[str, Any]:
        with migrated(project, 1) as contest:
            return await contest.memory(await contest.token(), few, many)

    found = await asyncio.gather(*(compare_on(project) for project in projects.values()))
    return dict(zip(projects, found, strict=True))
