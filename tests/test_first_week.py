"""What a team does in its first week breaks no test that is not its own, and no run goes mad."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant, run_tests
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
NO_STATE = Mutant("a lifespan without state", "app/main.py", 'yield {"started_at"', 'yield {"at"')
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


@pytest.fixture
def copy(project: Project, tmp_path: Path) -> Path:
    """A copy of the project, to be edited."""
    return copied(project, tmp_path / "copy")


@with_projects("default", "other")
def test_required_setting_breaks_nothing(project: Project, copy: Path) -> None:
    for edit in REQUIRED_SETTING:
        plant(edit, copy)
    code, output = run_tests(project, copy, "-n", "2")
    assert code == pytest.ExitCode.OK, output


@with_projects("core")
def test_managed_tests_demand_nothing_of_the_application(project: Project, copy: Path) -> None:
    for edit in (NO_STATE, LOG_IN_EVERYWHERE, REFUSE):
        plant(edit, copy)
    code, output = run_tests(project, copy, "-n", "2")
    assert code == pytest.ExitCode.OK, output


@with_projects("default", "other")
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


@with_projects("default", "postgresql")
def test_new_value_of_an_enum_needs_a_migration(project: Project, copy: Path) -> None:
    plant(NEW_VALUE, copy)
    code, output = run_tests(project, copy, "tests/core/test_migrations.py")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "given_away" in output


def break_migration(copy: Path) -> None:
    (copy / "migrations/versions/broken.py").write_text(MIGRATION, encoding="utf-8")


def break_lifespan(copy: Path) -> None:
    plant(Mutant("a typo", "app/main.py", 'yield {"started_at"', 'yield {"at": nwo, "x"'), copy)


def forget_example(copy: Path) -> None:
    plant(REQUIRED_SETTING[0], copy)
    plant(REQUIRED_SETTING[2], copy)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("break_it", "reasons"),
    [
        (break_migration, ["syntax error", "migrations/versions/broken.py, line 8"]),
        (break_lifespan, ["name 'nwo' is not defined", "app/main.py, line"]),
        (forget_example, ["API_KEY: is missing"]),
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
    assert len(output.splitlines()) < 60, output
    for reason in reasons:
        assert reason in output
