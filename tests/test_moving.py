"""An existing service moves onto a project without edits of managed files."""

from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, plant, run_tests
from tests.rendering import Project
from tests.test_first_week import REQUIRED_SETTING

FROZEN_TESTS = """
import asyncio
from datetime import datetime

import pytest
from freezegun import freeze_time

from tests.http_client import AsyncClient

NEW_YEAR = datetime(2020, 1, 1)


async def check(client: AsyncClient) -> None:
    assert datetime.now() == NEW_YEAR
    assert (await client.get("/readyz")).status_code == 200
    async with asyncio.timeout(5):
        await asyncio.sleep(0.01)


async def test_frozen_inside(client: AsyncClient) -> None:
    with freeze_time(NEW_YEAR):
        await check(client)


@freeze_time(NEW_YEAR)
async def test_frozen_outside(client: AsyncClient) -> None:
    await check(client)


@pytest.fixture
def frozen() -> None:
    freeze_time(NEW_YEAR).start()


async def test_frozen_by_a_fixture(frozen: None, client: AsyncClient) -> None:
    await check(client)


@pytest.mark.committed
async def test_frozen_for_ever(client: AsyncClient) -> None:
    await check(client)


@pytest.mark.timeout(2)
async def test_that_hangs(client: AsyncClient) -> None:
    await asyncio.Event().wait()
"""


@with_projects("default", ci=["other"])
def test_frozen_time_stops_no_timeout(project: Project, copy: Path, tmp_path: Path) -> None:
    freezegun = tmp_path / "freezegun"
    project.check("uv", "pip", "install", "--quiet", "--target", str(freezegun), "freezegun")
    (copy / "tests/test_frozen.py").write_text(FROZEN_TESTS, encoding="utf-8")
    options = ("-p", "no:randomly", "tests/test_frozen.py")
    code, output = run_tests(project, copy, *options, PYTHONPATH=str(freezegun))
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 4 passed" in output
    assert "The test did not end within 1.0 s" in output


OWN_CODE = (
    Mutant(
        "its import",
        "app/settings.py",
        "from app.core",
        "from functools import lru_cache\n\nfrom app.core",
    ),
    *REQUIRED_SETTING[:2],
    Mutant(
        "the router's import",
        "app/main.py",
        "from app.settings",
        "from app.own import router\nfrom app.settings",
    ),
    Mutant(
        "the router",
        "app/main.py",
        "    return app\n",
        "    app.include_router(router)\n    return app\n",
    ),
)

READ_AT_IMPORT = """

settings = Settings()


@lru_cache
def get_settings() -> Settings:
    return Settings()
"""
OWN_ENGINE = """
from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from app.settings import get_settings, settings

engine = create_async_engine(settings.database_url)
Session = async_sessionmaker(engine)
router = APIRouter()


@router.put("/own/table")
async def make_table() -> list[str]:
    async with Session() as session:
        await session.execute(text("CREATE TABLE own (id INTEGER)"))
        await session.commit()
    read = [settings, get_settings()]
    return [*(each.database_url for each in read), *(each.api_key for each in read)]
"""
TESTS_OF_OWN_ENGINE = """
import os

import pytest
from tests.harness.guard import IsolationError
from tests.http_client import AsyncClient


@pytest.mark.committed
@pytest.mark.parametrize("run", [1, 2])
async def test_database_and_settings_are_those_of_the_tests(client: AsyncClient, run: int) -> None:
    response = await client.put("/own/table")
    assert response.status_code == 200
    assert set(response.json()) == {os.environ["DATABASE_URL"], "an-example"}


async def test_rolled_back(client: AsyncClient) -> None:
    with pytest.raises(IsolationError, match="different engine"):
        await client.put("/own/table")
"""


@with_projects("default", ci=["other"])
def test_own_engine_and_settings_read_at_import_are_those_of_the_tests(
    project: Project, copy: Path
) -> None:
    with (copy / "app/settings.py").open("a", encoding="utf-8") as settings:
        settings.write(READ_AT_IMPORT)
    (copy / "app/own.py").write_text(OWN_ENGINE, encoding="utf-8")
    (copy / "tests/test_own.py").write_text(TESTS_OF_OWN_ENGINE, encoding="utf-8")
    for edit in OWN_CODE:
        plant(edit, copy)
    (copy / ".env").write_text("API_KEY=mine\nDATABASE_URL=sqlite+aiosqlite:///./mine.db")
    env = {"API_KEY": "mine", "DATABASE_URL": "sqlite+aiosqlite:///./mine.db"}
    _, output = run_tests(project, copy, "tests/test_own.py", **env)
    # Refusals are raised again after the test.
    assert "3 passed, 1 error" in output
    assert "ERROR tests/test_own.py::test_rolled_back" in output


CLIENT = """
import pytest
from tests.conftest import MakeClient
from tests.http_client import AsyncClient


@pytest.fixture
async def client(make_client: MakeClient) -> AsyncClient:
    return await make_client(headers={"X-Client": "of the team"})
"""
TEST_OF_CLIENT = """
from tests.http_client import AsyncClient


async def test_client(client: AsyncClient) -> None:
    assert client.headers["X-Client"] == "of the team"
"""


@with_projects("core")
@pytest.mark.ci
def test_fixture_of_a_folder_takes_the_place_of_one_for_all(project: Project, copy: Path) -> None:
    folder = copy / "tests/orders"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "conftest.py").write_text(CLIENT, encoding="utf-8")
    (folder / "test_client.py").write_text(TEST_OF_CLIENT, encoding="utf-8")
    code, output = run_tests(project, copy, "tests/orders")
    assert code == pytest.ExitCode.OK, output
    # A fixture that the template's overrides would otherwise be ignored silently.
    (folder / "conftest.py").unlink()
    with (copy / "tests/fixtures.py").open("a", encoding="utf-8") as fixtures:
        fixtures.write(CLIENT.replace("from tests.conftest import", "MakeClient = None  #"))
    code, output = run_tests(project, copy, "tests/orders")
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert "The fixture 'client' in tests.fixtures has no effect" in output


OLD_LIBRARY = """
import warnings

warnings.warn("do not use this", DeprecationWarning, stacklevel=2)
code = compile("1 is 1", __file__, "eval")
"""
IMPORT_OF_OLD_LIBRARY = Mutant(
    "an import", "tests/fixtures.py", "from app.settings", "import app.old\nfrom app.settings"
)
LET_THROUGH = """    "ignore:do not use:DeprecationWarning",
    'ignore:"is" with:SyntaxWarning',
]
"""


@with_projects("core")
@pytest.mark.ci
def test_old_library_can_be_imported_by_fixtures(project: Project, copy: Path) -> None:
    (copy / "app/old.py").write_text(OLD_LIBRARY, encoding="utf-8")
    plant(IMPORT_OF_OLD_LIBRARY, copy)
    code, output = run_tests(project, copy, "tests/core/test_health.py")
    assert code != pytest.ExitCode.OK
    assert "do not use this" in output
    configuration = (copy / "pytest.toml").read_text(encoding="utf-8")
    head, mark, tail = configuration.partition("]\n# In seconds")
    assert mark
    (copy / "pytest.toml").write_text(head + LET_THROUGH + mark[2:] + tail, encoding="utf-8")
    code, output = run_tests(project, copy, "tests/core/test_health.py")
    assert code == pytest.ExitCode.OK, output


OWN_DATABASE = """
import functools
import json
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, NullPool

dumps = functools.partial(json.dumps, default=str)
ENGINE_OPTIONS: dict[str, Any] = {"json_serializer": dumps, "poolclass": NullPool}
METADATA_OPTIONS: dict[str, Any] = {"naming_convention": {}}
TYPE_ANNOTATION_MAP: dict[Any, Any] = {datetime: DateTime()}


def include_object(item: object, name: str, type_: str, *_: object) -> bool:
    return not (type_ == "table" and name == "of_others")


def migration_options() -> dict[str, Any]:
    return {"include_object": include_object, "version_table": "history"}
"""
LEGACY_MODEL = """
from datetime import datetime
from decimal import Decimal
from typing import Any

from fastapi import APIRouter
from sqlalchemy import JSON, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, SessionDep

router = APIRouter()


class Legacy(Base):
    __tablename__ = "legacy"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    at: Mapped[datetime]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


@router.put("/legacy")
async def store(session: SessionDep) -> None:
    data = {"price": Decimal("1.5")}
    session.add(Legacy(name="a", at=datetime(2020, 1, 1), data=data))
    await session.commit()
"""
LEGACY_ROUTER = (
    Mutant(
        "the router's import",
        "app/main.py",
        "from app.settings",
        "from app.legacy import router\nfrom app.settings",
    ),
    Mutant(
        "the router",
        "app/main.py",
        "    return app\n",
        "    app.include_router(router)\n    return app\n",
    ),
)
LEGACY_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "legacy", None


def upgrade() -> None:
    op.create_table("of_others", sa.Column("id", sa.Integer(), primary_key=True))
    op.create_table(
        "legacy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )


def downgrade() -> None:
    op.drop_table("legacy")
    op.drop_table("of_others")
"""
LEGACY_TESTS = """
from datetime import datetime

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.legacy import Legacy
from tests.http_client import AsyncClient


@pytest.mark.parametrize(
    "run", ["in a rollback", pytest.param("for real", marks=pytest.mark.committed)]
)
async def test_options_of_the_engine(
    client: AsyncClient, db_session: AsyncSession, run: str
) -> None:
    assert (await client.put("/legacy")).status_code == 200
    stored = await db_session.scalar(select(Legacy))
    assert stored is not None
    assert (stored.at, stored.data) == (datetime(2020, 1, 1), {"price": "1.5"})
    db_session.add(Legacy(name="b", at=stored.at, data={"at": stored.at}))
    await db_session.commit()


async def test_names_of_constraints(db_session: AsyncSession) -> None:
    connection = await db_session.connection()
    [constraint] = await connection.run_sync(
        lambda connection: inspect(connection).get_unique_constraints("legacy")
    )
    assert constraint["name"] == (
        None if connection.dialect.name == "sqlite" else "legacy_name_key"
    )
"""


@with_projects(ci=["core", "other"])
def test_history_and_engine_keep_their_rules(project: Project, copy: Path) -> None:
    (copy / "app/legacy.py").write_text(LEGACY_MODEL, encoding="utf-8")
    (copy / "migrations/versions/legacy.py").write_text(LEGACY_MIGRATION, encoding="utf-8")
    (copy / "tests/test_legacy.py").write_text(LEGACY_TESTS, encoding="utf-8")
    with (copy / "app/models.py").open("a", encoding="utf-8") as models:
        models.write("import app.legacy  # noqa: F401\n")
    for edit in LEGACY_ROUTER:
        plant(edit, copy)
    tests = ("tests/test_legacy.py", "tests/core/test_migrations.py")
    assert run_tests(project, copy, *tests)[0] != pytest.ExitCode.OK
    (copy / "app/database.py").write_text(OWN_DATABASE, encoding="utf-8")
    code, output = run_tests(project, copy, *tests)
    assert code == pytest.ExitCode.OK, output


EXTENSION = """
from alembic import op

revision, down_revision = "citext", None


def upgrade() -> None:
    op.execute("CREATE EXTENSION citext")
"""


@with_projects("other")
@pytest.mark.ci
def test_missing_extension_names_the_remedy(project: Project, copy: Path) -> None:
    (copy / "migrations/versions/citext.py").write_text(EXTENSION, encoding="utf-8")
    code, output = run_tests(project, copy)
    assert code != pytest.ExitCode.OK
    assert "in migrations/versions/citext.py, line 8" in output
    assert "Set TEST_DATABASE_URL to a server that has the extensions of your migrations" in output


NEW_CANNOT_BE_UNDONE = Mutant(
    "nothing undone", "migrations/versions/new.py", "DROP TABLE new", "SELECT 1"
)
NO_WAY_BACK = """
from alembic import op

revision, down_revision = "{revision}", {before!r}


def upgrade() -> None:
    op.execute("CREATE TABLE {revision} (id INTEGER PRIMARY KEY)")


def downgrade() -> None:
    {downgrade}
"""


@with_projects("other", ci=["core"])
@pytest.mark.ci
def test_migrations_are_tested_from_a_revision_on(project: Project, copy: Path) -> None:
    versions = copy / "migrations/versions"
    before = None
    for revision, downgrade in {
        "old": "raise NotImplementedError",
        "middle": "raise NotImplementedError",
        "new": 'op.execute("DROP TABLE new")',
    }.items():
        (versions / f"{revision}.py").write_text(
            NO_WAY_BACK.format(revision=revision, before=before, downgrade=downgrade),
            encoding="utf-8",
        )
        before = revision
    options = ("tests/core/test_migrations.py", "-k", "up_again")
    assert run_tests(project, copy, *options)[0] == pytest.ExitCode.TESTS_FAILED
    code, output = run_tests(project, copy, *options, "-o", "downgrade_to=middle")
    assert code == pytest.ExitCode.OK, output
    plant(NEW_CANNOT_BE_UNDONE, copy)
    code, output = run_tests(project, copy, *options, "-o", "downgrade_to=middle")
    assert code == pytest.ExitCode.TESTS_FAILED, output
