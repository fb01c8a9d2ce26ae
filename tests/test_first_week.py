"""A team's first week breaks none of the template's tests, and no run gets out of hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, plant, run_tests
from tests.rendering import Project

REQUIRED_SETTING = (
    Mutant("its field", "app/settings.py", "Settings):", "Settings):\n    api_key: str\n"),
    Mutant("its example", ".env.example", "LOG_LEVEL=INFO", "LOG_LEVEL=INFO\nAPI_KEY=an-example"),
    Mutant(
        "its value in the tests",
        "tests/fixtures.py",
        'environment="test",',
        'environment="test",\n        api_key="of-the-tests",',
    ),
)
NO_STATE = Mutant("a lifespan without state", "app/main.py", '"started_at": date', '"at": date')
LOG_IN_EVERYWHERE = Mutant(
    "a dependency of all endpoints",
    "app/main.py",
    "        title=",
    "        dependencies=[Depends(refuse)],\n        title=",
)
REFUSE = Mutant(
    "what that depends on",
    "app/main.py",
    "from fastapi import FastAPI\n",
    "from fastapi import Depends, FastAPI, HTTPException\n\n\n"
    "def refuse() -> None:\n    raise HTTPException(401)\n\n\n",
)
MIGRATION = """
from alembic import op

revision, down_revision = "broken", "0001"


def upgrade() -> None:
    op.execute("CREATE TABEL orders (id INTEGER)")
"""


@with_projects(ci=["default"], slow=["other"])
def test_required_setting_breaks_nothing(project: Project, copy: Path) -> None:
    for edit in REQUIRED_SETTING:
        plant(edit, copy)
    code, output = run_tests(project, copy, "-n", "2")
    assert code == pytest.ExitCode.OK, output


@with_projects("core")
@pytest.mark.ci
def test_managed_tests_demand_nothing_of_the_application(project: Project, copy: Path) -> None:
    for edit in (NO_STATE, LOG_IN_EVERYWHERE, REFUSE):
        plant(edit, copy)
    # The tests of the OpenAPI document are the team's: they may demand a declaration.
    code, output = run_tests(project, copy, "-n", "2", "--ignore=tests/openapi")
    assert code == pytest.ExitCode.OK, output


@with_projects(ci=["default", "other"])
def test_tests_depend_on_no_directory_and_no_environment(project: Project, copy: Path) -> None:
    (copy / ".env").write_text("LOG_LEVEL=loud\nDATABASE_URL=sqlite+aiosqlite:///./mine.db")
    directory = copy / "tests" / ("items" if project.has_example else "core")
    code, output = run_tests(project, directory, ENVIRONMENT="production", SMTP_HOST="example.com")
    assert code == pytest.ExitCode.OK, output
    assert not list(copy.glob("**/mine.db"))


TYPE_LEFT = Mutant(
    "a way down that forgets a type",
    "migrations/versions/0001_*.py",
    '    sa.Enum(name="item_status").drop(op.get_bind())\n',
    "",
)


@with_projects("postgresql")
@pytest.mark.ci
def test_what_a_downgrade_leaves_is_named(project: Project, copy: Path) -> None:
    plant(TYPE_LEFT, copy)
    code, output = run_tests(project, copy, "tests/core/test_migrations.py")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "this is left: type item_status. Drop it in downgrade():" in output


NEW_VALUE = Mutant(
    "a value that the database does not know",
    "app/items/models.py",
    '    SOLD = "sold"\n',
    '    SOLD = "sold"\n    GIVEN_AWAY = "given_away"\n',
)


@with_projects(ci=["default", "postgresql"])
def test_new_value_of_an_enum_needs_a_migration(project: Project, copy: Path) -> None:
    plant(NEW_VALUE, copy)
    code, output = run_tests(project, copy, "tests/core/test_migrations.py")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "given_away" in output


def break_migration(copy: Path) -> None:
    (copy / "migrations/versions/broken.py").write_text(MIGRATION, encoding="utf-8")


def break_lifespan(copy: Path) -> None:
    plant(Mutant("a typo", "app/main.py", '"started_at": date', '"at": nwo, "x": date'), copy)


def forget_example(copy: Path) -> None:
    plant(REQUIRED_SETTING[0], copy)
    plant(REQUIRED_SETTING[2], copy)


@pytest.mark.parametrize("workers", ["2", pytest.param("0", marks=pytest.mark.ci)])
@pytest.mark.parametrize(
    ("break_it", "reasons"),
    [
        (break_migration, ["syntax error", "migrations/versions/broken.py, line 8"]),
        pytest.param(
            *(break_lifespan, ["name 'nwo' is not defined", "app/main.py, line"]),
            marks=pytest.mark.ci,
        ),
        pytest.param(forget_example, ["API_KEY: is missing"], marks=pytest.mark.ci),
    ],
)
@with_projects("default")
def test_what_all_tests_need_fails_once(
    project: Project,
    copy: Path,
    break_it: Callable[[Path], None],
    reasons: list[str],
    workers: str,
) -> None:
    break_it(copy)
    code, output = run_tests(project, copy, "-n", workers)
    assert code != pytest.ExitCode.OK, output
    # A few lines for each worker, and for each test with its own event loop; not thousands.
    assert len(output.splitlines()) < 150, output
    for reason in reasons:
        assert reason in output


CALLS_OUT = Mutant(
    "a lifespan that calls out", "app/main.py", "    yield {", "    call_out()\n    yield {"
)
SWALLOWS = Mutant(
    "a lifespan that survives that",
    "app/main.py",
    "    yield {",
    "    with suppress(AssertionError):\n        call_out()\n    yield {",
)
EXPORTS = Mutant(
    "a lifespan that exports telemetry",
    "app/main.py",
    "    yield {",
    '    Thread(target=export, name="exporter", daemon=True).start()\n    yield {',
)
CALL = Mutant(
    "what calls out",
    "app/main.py",
    "\n\n@asynccontextmanager",
    """

def call_out() -> None:
    socket.create_connection(("collector.example.com", 4318))


def export() -> None:
    while True:
        with suppress(OSError):
            call_out()
        time.sleep(0.01)


@asynccontextmanager""",
)
IMPORTS = Mutant(
    "its imports",
    "app/main.py",
    "from collections.abc import AsyncIterator\n",
    "import socket\nimport time\nfrom collections.abc import AsyncIterator\n"
    "from contextlib import suppress\nfrom threading import Thread\n",
)
AT_IMPORT = Mutant("an import that calls out", "app/main.py", "app = create_app()", "call_out()")
OURS = """
import app.main


async def test_service_is_alive(client):
    assert (await client.get("/livez")).status_code == 200


async def test_service_is_still_alive(client):
    assert (await client.get("/livez")).status_code == 200
"""


@pytest.mark.parametrize(
    ("edit", "workers", "signs"),
    [
        (CALLS_OUT, "0", ["app/main.py, line", "A fixture that tests share, such as"]),
        (SWALLOWS, "0", ["2 passed", "A fixture that tests share, such as"]),
        pytest.param(EXPORTS, "2", ["2 passed", "The thread 'exporter'"], marks=pytest.mark.ci),
        pytest.param(AT_IMPORT, "2", ["app/main.py:", "A module tried"], marks=pytest.mark.ci),
    ],
)
@with_projects("core")
def test_what_calls_out_for_all_tests_is_refused_and_blames_none(
    project: Project, copy: Path, edit: Mutant, workers: str, signs: list[str]
) -> None:
    for each in (edit, CALL, IMPORTS):
        plant(each, copy)
    (copy / "tests/test_ours.py").write_text(OURS, encoding="utf-8")
    code, output = run_tests(project, copy, "-n", workers, "tests/test_ours.py")
    assert code != pytest.ExitCode.OK, output
    assert len(output.splitlines()) < 60, output
    for sign in ["Tests cannot reach other machines, and collector.example.com:4318", *signs]:
        assert sign in output
