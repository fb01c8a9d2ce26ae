"""Each pattern in docs/patterns.md has tests that run, pass, and can fail."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, run_tests, run_with
from tests.rendering import ROOT, Project

DOCS = (ROOT / "docs/patterns.md").read_text(encoding="utf-8")

# The patterns that people look for. Other tests may show a pattern one day, but none may go.
PATTERNS = [
    "Async tests without a marker",
    "`AsyncClient` over ASGI",
    "Check the database after a request",
    "Lifespan",
    "Unit tests of dependencies",
    "Async fixtures and factories",
    "Authentication",
    "Dependency overrides",
    "`AsyncMock` and `patch`",
    "Outgoing HTTP API",
    "Background tasks",
    "Jobs",
    "WebSockets",
    "Server-sent events",
    "Concurrency",
    "Snapshots",
    "asyncio and trio",
    "`TestClient`",
    "pytest-asyncio",
    "Time and randomness",
    "Query counts",
    "Errors",
    "Relationships",
    "Money",
    "Enums",
    "Filters",
    "Pages",
    "Contract",
    "Migrations",
    "The test run",
]
# A test in this module and commands show these.
ELSEWHERE = {"pytest-asyncio", "The test run"}


def table(text: str) -> dict[str, list[str]]:
    """Read the table of patterns: each pattern, and the ids of its tests."""
    rows = text.split("| pattern | test")[1].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    return {
        re.sub(r"^\*\*(.+?)\*\*.*", r"\1", cells[1]): re.findall(r"`(tests/\S+::\w+)`", cells[2])
        for cells in (re.split(r"\s*\|\s*", row) for row in rows)
    }


def commands(text: str) -> list[str]:
    """Return the commands that run the tests, without their comments."""
    return re.findall(r"^(uv run pytest.*?)(?: +#.*)?$", text, re.MULTILINE)


TESTS = table(DOCS)
IN_THE_PROJECT = {name: ids for name, ids in TESTS.items() if name not in ELSEWHERE}


def test_every_pattern_is_in_the_table() -> None:
    assert list(TESTS) == PATTERNS
    assert all(IN_THE_PROJECT.values())


def test_what_is_shown_elsewhere_is_there() -> None:
    [node_id] = TESTS["pytest-asyncio"]
    file, name = node_id.split("::")
    assert Path(__file__) == ROOT / file
    assert name in globals()
    assert not TESTS["The test run"]


def test_the_readme_of_the_service_has_the_same_table(rendered: Callable[..., Path]) -> None:
    readme = (rendered() / "README.md").read_text(encoding="utf-8")
    assert table(readme) == {name: ids[:1] for name, ids in IN_THE_PROJECT.items()}


@with_projects("default")
def test_every_test_of_the_table_is_there(project: Project) -> None:
    wanted = sorted({node_id for ids in IN_THE_PROJECT.values() for node_id in ids})
    code, output = run_tests(project, project.path, "--collect-only", *wanted)
    assert code == 0, output  # so each exists; tests/test_project.py runs them


@with_projects("default")
@pytest.mark.ci
def test_every_test_of_the_table_passes(project: Project, tmp_path: Path) -> None:
    wanted = sorted({node_id for ids in IN_THE_PROJECT.values() for node_id in ids})
    code, output = run_tests(project, copied(project, tmp_path / "copy"), "-rA", *wanted)
    assert code == 0, output
    passed = re.findall(r"^PASSED ([^\s[]+)", output, re.MULTILINE)
    assert sorted(set(passed)) == wanted
    assert "skipped" not in output.splitlines()[-1]


@pytest.mark.ci
def test_the_commands_run_the_tests(default_project: Project, tmp_path: Path) -> None:
    readme = (default_project.path / "README.md").read_text(encoding="utf-8")
    signs = {
        "-n 2": "2 workers",
        "--randomly-seed=1234": "--randomly-seed=1234",
        "--durations=10": "slowest 10 durations",
        "--cov": "app/users/router.py",
    }
    every = {*commands(DOCS), *commands(readme)}
    assert every == {
        *("uv run pytest", "uv run pytest -p no:randomly"),
        *(f"uv run pytest {options}" for options in signs),
    }
    copy = copied(default_project, tmp_path / "copy")
    few = ("-v", "--cov-fail-under=0", "--durations-min=0", "tests/users/test_dependencies.py")
    for together in (["-n 2"], [options for options in signs if options != "-n 2"]):
        code, output = run_tests(default_project, copy, *" ".join(together).split(), *few)
        assert code == 0, output
        for options in together:
            assert signs[options] in output


# ---- Next to pytest-asyncio ----

BESIDE = """
import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession

from tests.http_client import AsyncClient


@pytest.fixture
async def loop_of_anyio(client: AsyncClient) -> AsyncIterator[asyncio.AbstractEventLoop]:
    yield asyncio.get_running_loop()


@pytest_asyncio.fixture
async def loop_of_pytest_asyncio() -> AsyncIterator[asyncio.AbstractEventLoop]:
    yield asyncio.get_running_loop()


@pytest.mark.anyio
async def test_marked_for_anyio() -> None:
    assert asyncio.current_task().get_coro().__qualname__.startswith("TestRunner")


async def test_with_our_fixtures(
    client: AsyncClient, db_session: AsyncSession, loop_of_anyio: asyncio.AbstractEventLoop
) -> None:
    assert asyncio.get_running_loop() is loop_of_anyio
    assert asyncio.current_task().get_coro().__qualname__.startswith("TestRunner")
    assert (await client.get("/readyz")).status_code == 200


@pytest.mark.asyncio
async def test_with_theirs(loop_of_pytest_asyncio: asyncio.AbstractEventLoop) -> None:
    assert asyncio.get_running_loop() is loop_of_pytest_asyncio
    assert not asyncio.current_task().get_coro().__qualname__.startswith("TestRunner")
"""


def run_beside(project: Project, directory: Path, configuration: str, *options: str) -> str:
    """Run the tests of both plugins in a copy of the project; return the result."""
    copy = copied(project, directory)
    file = copy / "pytest.toml"
    inherited = file.read_text(encoding="utf-8").replace('anyio_mode = "auto"\n', "")
    file.write_text(f"{inherited}{configuration}", encoding="utf-8")
    (copy / "tests/beside").mkdir()
    (copy / "tests/beside/__init__.py").touch()
    (copy / "tests/beside/test_beside.py").write_text(BESIDE, encoding="utf-8")
    command = ("uv", "run", "--with", "pytest-asyncio", "pytest", "tests/beside", "-p")
    done = Project(copy, project.answers).run(
        *command, "no:cacheprovider", *options, UV_PROJECT_ENVIRONMENT=str(project.path / ".venv")
    )
    return done.stdout


def test_living_beside_pytest_asyncio(default_project: Project, tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/pytest-asyncio.md").read_text(encoding="utf-8")
    [documented] = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    said = run_beside(default_project, tmp_path / "copy", documented)
    assert re.search(r"=+ 3 passed in", said), said


@pytest.mark.ci
@pytest.mark.parametrize(
    ("anyio_mode", "asyncio_mode", "sign"),
    [
        ("auto", None, '"asyncio_default_fixture_loop_scope" is unset'),
        ("auto", "auto", "AnyIO auto mode has been enabled together with pytest-asyncio auto mode"),
        ("strict", "auto", "FAILED tests/beside/test_beside.py::test_with_our_fixtures"),
        ("auto", "strict", "FAILED tests/beside/test_beside.py::test_with_theirs"),
    ],
)
def test_what_the_docs_advise_against_does_not_work(
    default_project: Project, tmp_path: Path, anyio_mode: str, asyncio_mode: str | None, sign: str
) -> None:
    configuration = f'anyio_mode = "{anyio_mode}"\n'
    if asyncio_mode:
        configuration += f'asyncio_mode = "{asyncio_mode}"\n'
        configuration += 'asyncio_default_fixture_loop_scope = "function"\n'
    said = run_beside(default_project, tmp_path / "copy", configuration)
    assert sign in said, said


# ---- Each pattern watches its part of the service ----


class Watched(NamedTuple):
    """A fault in the service, and the pattern whose tests notice it."""

    pattern: str
    mutant: Mutant


USERS = "app/users/{}.py"
ITEMS = "app/items/{}.py"

WATCHED = [
    Watched(
        "`AsyncClient` over ASGI",
        Mutant(
            "items do not say when they were made",
            ITEMS.format("schemas"),
            "    tags: list[ItemTag]\n    created_at: datetime\n",
            "    tags: list[ItemTag]\n",
        ),
    ),
    Watched(
        "Check the database after a request",
        Mutant(
            "a new item is not committed",
            ITEMS.format("service"),
            '"created", ItemRead.model_validate(item))\n    await session.commit()',
            '"created", ItemRead.model_validate(item))\n    await session.flush()',
        ),
    ),
    Watched(
        "Check the database after a request",
        Mutant(
            "a new account is not committed",
            USERS.format("service"),
            "user_id=user.id)\n        await session.commit()",
            "user_id=user.id)\n        await session.flush()",
        ),
    ),
    Watched(
        "Lifespan",
        Mutant(
            "the state of the start is lost",
            "app/core/application.py",
            '"core": app.state, **(state or {})}',
            '"core": app.state}',
        ),
    ),
    Watched(
        "Unit tests of dependencies",
        Mutant(
            "the request's session commits by itself",
            "app/core/database.py",
            "        yield session\n",
            "        yield session\n        await session.commit()\n",
        ),
    ),
    Watched(
        "Async fixtures and factories",
        Mutant(
            "points in time are stored in local time",
            "app/core/database.py",
            "return value and value.astimezone(UTC)",
            "return value and value.replace(tzinfo=UTC)",
        ),
    ),
    Watched(
        "Authentication",
        Mutant(
            "every token opens the first account",
            USERS.format("dependencies"),
            "await session.get(User, access_token.user_id)",
            "await session.get(User, 1)",
        ),
    ),
    Watched(
        "Dependency overrides",
        Mutant(
            "nobody is asked, whatever the dependency says",
            USERS.format("dependencies"),
            "Depends(get_breaches)]",
            "Depends(lambda: None)]",
        ),
    ),
    Watched(
        "`AsyncMock` and `patch`",
        Mutant(
            "the address is hashed, not the password",
            USERS.format("router"),
            "service.renew_hash, user.id, password,",
            "service.renew_hash, user.id, user.email,",
        ),
    ),
    Watched(
        "Outgoing HTTP API",
        Mutant(
            "a failure that would pass is not tried again",
            USERS.format("breaches"),
            "attempts=ATTEMPTS",
            "attempts=1",
        ),
    ),
    Watched(
        "Outgoing HTTP API",
        Mutant(
            "an API that is down stops sign-ups",
            USERS.format("service"),
            "except BreachesUnknownError:",
            "except ZeroDivisionError:",
        ),
    ),
    Watched(
        "Background tasks",
        Mutant(
            "the renewal is not scheduled",
            USERS.format("router"),
            "background.add_task(service.renew_hash,",
            "print(service.renew_hash,",
        ),
    ),
    Watched(
        "Background tasks",
        Mutant(
            "the background task does not commit",
            USERS.format("service"),
            "values(password_hash=password_hash)\n        )\n        await session.commit()\n",
            "values(password_hash=password_hash)\n        )\n",
        ),
    ),
    Watched(
        "Jobs",
        Mutant(
            "the sign-up writes no job",
            USERS.format("service"),
            "await send_welcome.enqueue(session, user_id=user.id)",
            "await session.flush()",
        ),
    ),
    Watched(
        "Jobs",
        Mutant(
            "jobs do not wait for the commit",
            "app/core/jobs.py",
            "outbox_of(session.sync_session).add(jobs.queue, new)",
            "await jobs.queue.enqueue(**new)",
        ),
    ),
    Watched(
        "Jobs",
        Mutant(
            "the job does not commit",
            USERS.format("jobs"),
            "user.welcomed_at = datetime.now(UTC)\n        await session.commit()\n",
            "user.welcomed_at = datetime.now(UTC)\n",
        ),
    ),
    Watched(
        "WebSockets",
        Mutant(
            "every follower is told everything",
            ITEMS.format("feed"),
            "where(ItemEvent.owner_id == owner_id, ItemEvent.id > after)",
            "where(ItemEvent.id > after)",
        ),
    ),
    Watched(
        "WebSockets",
        Mutant(
            "a socket without a token is closed with another code",
            ITEMS.format("dependencies"),
            "WebSocketException(status.WS_1008_POLICY_VIOLATION",
            "WebSocketException(status.WS_1011_INTERNAL_ERROR",
        ),
    ),
    Watched(
        "Server-sent events",
        Mutant(
            "Last-Event-ID is passed over",
            ITEMS.format("dependencies"),
            "return min(last_event_id, newest)",
            "return 0",
        ),
    ),
    Watched(
        "Server-sent events",
        Mutant(
            "a follower who leaves is kept",
            ITEMS.format("feed"),
            "            self._followers[owner_id] -= 1\n",
            "",
        ),
    ),
    Watched(
        "Concurrency",
        Mutant(
            "a race for an address is an error of the server",
            USERS.format("service"),
            "except IntegrityError as error:",
            "except ZeroDivisionError as error:",
        ),
    ),
    Watched(
        "Snapshots",
        Mutant(
            "the document says something else",
            ITEMS.format("service"),
            'title = "No such item"',
            'title = "Not here"',
        ),
    ),
    Watched(
        "asyncio and trio",
        Mutant(
            "the probe works on asyncio only",
            "app/core/health.py",
            '"""Answer as long as the process does."""\n',
            '"""Answer as long as the process does."""\n    await asyncio.sleep(0)\n',
        ),
    ),
    Watched(
        "`TestClient`",
        Mutant(
            "a list shows the items of others",
            ITEMS.format("service"),
            "where(Item.owner_id == owner.id).options",
            "where(Item.owner_id != owner.id).options",
        ),
    ),
    Watched(
        "Time and randomness",
        Mutant(
            "tokens do not expire",
            USERS.format("security"),
            '"strict_aud": True}',
            '"strict_aud": True, "verify_exp": False}',
        ),
    ),
    Watched(
        "Query counts",
        Mutant(
            "each item of a list takes a query",
            ITEMS.format("service"),
            "    return await OLDEST_FIRST.page(session, wanted, query)\n",
            "    page = await OLDEST_FIRST.page(session, wanted, query)\n"
            "    for item in page.items:\n"
            "        await session.refresh(item)\n"
            "    return page\n",
        ),
    ),
    Watched(
        "Errors",
        Mutant(
            "errors are no problem details",
            "app/main.py",
            "    add_problem_details(app)\n",
            "",
        ),
    ),
    Watched(
        "Relationships",
        Mutant(
            "tags are loaded on access",
            ITEMS.format("models"),
            'order_by="Tag.name", lazy="raise"',
            'order_by="Tag.name"',
        ),
    ),
    Watched(
        "Money",
        Mutant(
            "prices are floats",
            ITEMS.format("models"),
            "mapped_column(Numeric(12, 2))",
            "mapped_column(Numeric(12, 2, asdecimal=False))",
        ),
    ),
    Watched(
        "Enums",
        Mutant(
            "the database takes any status",
            "migrations/versions/0001_*.py",
            ', name="item_status", create_constraint=True)',
            ', name="item_status")',
        ),
    ),
    Watched(
        "Filters",
        Mutant(
            "the price is not looked at",
            ITEMS.format("service"),
            "Item.price <= query.max_price",
            "Item.price >= 0",
        ),
    ),
    Watched(
        "Pages",
        Mutant(
            "a page starts with the last row of the previous one",
            "app/core/pages.py",
            "columns > values",
            "columns >= values",
        ),
    ),
    Watched(
        "Contract",
        Mutant(
            "an answer is not declared",
            ITEMS.format("router"),
            '@router.get("/{item_id}", response_model=ItemRead, responses=NOT_FOUND)',
            '@router.get("/{item_id}", response_model=ItemRead)',
        ),
    ),
    Watched(
        "Migrations",
        Mutant(
            "the migration makes another column than the model",
            "migrations/versions/0001_*.py",
            'sa.Column("title", sa.String(length=200)',
            'sa.Column("title", sa.String(length=100)',
        ),
    ),
    Watched(
        "Migrations",
        Mutant(
            "the way down leaves a table",
            "migrations/versions/0001_*.py",
            '    op.drop_table("users")\n',
            "",
        ),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("watched", WATCHED, ids=lambda watched: watched.mutant.name)
def test_fault_in_the_service_is_caught_by_its_pattern(
    default_project: Project,
    tmp_path: Path,
    watched: Watched,
    record_property: Callable[[str, object], None],
) -> None:
    ids = TESTS[watched.pattern]
    options = ("-o", "timeout=10", *ids)  # cancels a test that hangs sooner
    code, output, failed = run_with(watched.mutant, default_project, tmp_path / "copy", *options)
    caught_by = [node_id for node_id in failed if node_id.split("[")[0] in ids]
    assert code == 1, f"survived: {watched.mutant.name}\n{output}"
    assert caught_by, output
    record_property("mutant", f"{watched.mutant.name}: {caught_by[0]}")
