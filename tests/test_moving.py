"""What others have written moves onto a project without an edit of what is managed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, plant, run_tests
from tests.rendering import Project


@pytest.fixture
def copy(project: Project, tmp_path: Path) -> Path:
    """A copy of the project, to be edited."""
    return copied(project, tmp_path / "copy")


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


@with_projects("default", "other")
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
    Mutant(
        "a setting", "app/settings.py", "(CoreSettings):", "(CoreSettings):\n    api_key: str\n"
    ),
    Mutant("its example", ".env.example", "LOG_LEVEL=INFO", "LOG_LEVEL=INFO\nAPI_KEY=an-example"),
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
    with pytest.raises(IsolationError, match="another engine"):
        await client.put("/own/table")
"""


@with_projects("default", "other")
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
    # What was refused is raised again after the test.
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


@pytest.mark.xdist_group("core")
def test_fixture_of_a_folder_takes_the_place_of_one_for_all(
    installed: Callable[[str], Project], tmp_path: Path
) -> None:
    project = installed("core")
    copy = copied(project, tmp_path / "copy")
    folder = copy / "tests/orders"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "conftest.py").write_text(CLIENT, encoding="utf-8")
    (folder / "test_client.py").write_text(TEST_OF_CLIENT, encoding="utf-8")
    code, output = run_tests(project, copy, "tests/orders")
    assert code == pytest.ExitCode.OK, output
    # One that is hidden by the template's would be passed over in silence.
    (folder / "conftest.py").unlink()
    with (copy / "tests/fixtures.py").open("a", encoding="utf-8") as fixtures:
        fixtures.write(CLIENT.replace("from tests.conftest import", "MakeClient = None  #"))
    code, output = run_tests(project, copy, "tests/orders")
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert "tests.fixtures has a fixture 'client' that no test gets" in output


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


@pytest.mark.xdist_group("core")
def test_old_library_can_be_imported_by_fixtures(
    installed: Callable[[str], Project], tmp_path: Path
) -> None:
    project = installed("core")
    copy = copied(project, tmp_path / "copy")
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
