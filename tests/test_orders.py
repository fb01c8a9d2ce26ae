"""Add a feature by the steps of the project's README; mistakes on the way are explained."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import with_projects
from tests.mutants import Mutant, copied, failures, plant, run_tests
from tests.rendering import ROOT, Project, run

FEATURE = ROOT / "tests/orders"
# The edits to make if the README names one of these files.
EDITS = {
    "app/models.py": ("\\Z", "\nfrom app.orders.models import Order, OrderLine\n"),
    "app/main.py": (
        "(?=^    return app$)",
        "    from app.orders.router import router\n\n    app.include_router(router)\n",
    ),
}
LONGER = Mutant("a change with rows", "app/orders/models.py", "String(100)", "String(200)")
# The tests of the feature and of the whole application, without the slow call of all operations.
TESTS = "-k 'orders or core or document'"
STORE = """
import asyncio
from decimal import Decimal
from app.core.database import create_engine, create_session_factory
from app.orders.models import Order, OrderLine
from app.settings import Settings

async def store():
    engine = create_engine(Settings().database_url)
    async with create_session_factory(engine)() as session:
        line = OrderLine(product="Lamp", quantity=1, price=Decimal("9.50"))
        session.add(Order(customer="Ada", lines=[line]))
        await session.commit()
    await engine.dispose()

asyncio.run(store())
"""
COUNT = """
import asyncio
from sqlalchemy import text
from app.core.database import create_engine
from app.settings import Settings

async def count():
    engine = create_engine(Settings().database_url)
    async with engine.connect() as connection:
        for table in ("orders", "order_lines"):
            print(await connection.scalar(text(f"SELECT count(*) FROM {table}")))
    await engine.dispose()

asyncio.run(count())
"""


class Step(NamedTuple):
    """A step of the README: files to write or edit, and commands to run afterwards."""

    files: list[str]
    commands: list[str]


def read_steps(readme: str) -> tuple[list[str], list[Step]]:
    """Return the commands to run after each step, and the steps."""
    [section] = re.findall(r"^## Add a feature$(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    section = section.replace("<feature>", "orders")
    after_each, *steps = re.split(r"^\d\. ", section, flags=re.MULTILINE)
    return commands_in(after_each), [
        Step(re.findall(r"`((?:app|tests)/\S+\.py)`", step), commands_in(step)) for step in steps
    ]


def commands_in(text: str) -> list[str]:
    """Return the shell commands in a text."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()]


def write(copy: Path, name: str) -> None:
    """Write or edit the file that the README names."""
    file = copy / name
    if name in EDITS:
        place, text = EDITS[name]
        before = file.read_text(encoding="utf-8")
        file.write_text(re.sub(place, text, before, count=1, flags=re.MULTILINE), "utf-8")
    else:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(FEATURE / name, file)


class Newcomer:
    """Follows the README in a copy of a project."""

    def __init__(self, project: Project, copy: Path, database_url: str) -> None:
        self.copy = copy
        self.repaired = 0
        self._environment = {
            "DATABASE_URL": database_url,
            "ENVIRONMENT": "development",
            "SECRET_KEY": "a-key-of-the-developer-of-32-letters",
            "UV_PROJECT_ENVIRONMENT": str(project.path / ".venv"),
            "MYPY_CACHE_DIR": str(project.path / ".mypy_cache"),
            "PYTEST_ADDOPTS": TESTS,
        }

    def run(self, *commands: str) -> str:
        """Run commands that must succeed, and return the output of the last one."""
        for command in commands:
            done = run("sh", "-c", command, cwd=self.copy, env=self._environment)
            assert done.returncode == 0, f"{command}: {done.stdout}"
            assert not re.search(r"\bwarnings?\b", done.stdout, re.IGNORECASE), done.stdout
            self.repaired += sum(map(int, re.findall(r"^Fixed (\d+)", done.stdout, re.MULTILINE)))
        return done.stdout

    def run_python(self, code: str) -> str:
        """Run code with the service's database."""
        return self.run(f"uv run python -c {shlex.quote(code)}")


@pytest.fixture
def newcomer(project: Project, tmp_path: Path) -> Iterator[Newcomer]:
    with project.new_database() as url:
        yield Newcomer(project, copied(project, tmp_path / "copy"), url)


@pytest.mark.timeout(1200)  # runs all checks four times
@with_projects(ci=["default"], slow=["other"])
def test_feature_is_added_by_the_steps_of_the_readme(
    project: Project, newcomer: Newcomer, record_property: Callable[[str, object], None]
) -> None:
    readme = (newcomer.copy / "README.md").read_text(encoding="utf-8")
    after_each, steps = read_steps(readme)
    for step in steps:
        for name in step.files:
            write(newcomer.copy, name)
        newcomer.run(*step.commands, *after_each)
    newcomer.run("uv run pytest tests/openapi -k contract")

    newcomer.run_python(STORE)
    plant(LONGER, newcomer.copy)
    newcomer.run(*steps[0].commands, *after_each)
    for revision in ("downgrade -1", "upgrade head"):
        newcomer.run(f"uv run alembic {revision}")
        assert newcomer.run_python(COUNT).split() == ["1", "1"]
    newcomer.run("uv run alembic downgrade base", "uv run alembic upgrade head")

    named = {Path(name).name for step in steps for name in step.files}
    assert named == {file.name for file in FEATURE.rglob("*.py")} | {"main.py"}
    record_property(
        "tried",
        f"a feature with {project.database}, by the README: complaints of tools: 0, "
        f"repaired by `poe format`: {newcomer.repaired}",
    )


# ---- Mistakes on the way ----

NO_AWAIT = """
async def test_forgets(client):
    response = client.get("/livez")
    assert response.status_code == 200


async def test_does_not(client):
    assert (await client.get("/livez")).status_code == 200
"""


@pytest.fixture
def copy(copy: Path) -> Path:
    """A copy of the project with the feature, but without its import and its migration."""
    for file in FEATURE.rglob("*.py"):
        write(copy, file.relative_to(FEATURE).as_posix())
    write(copy, "app/main.py")
    return copy


@with_projects(ci=["core", "other"])
def test_model_without_import_and_migration_is_named(project: Project, copy: Path) -> None:
    code, said = run_tests(project, copy, "tests/core/test_migrations.py")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "app/models.py has to import these" in said
    assert "app.orders.models.OrderLine" in said

    write(copy, "app/models.py")
    code, said = run_tests(project, copy, "tests/core/test_migrations.py")
    assert failures(said) == ["tests/core/test_migrations.py::test_models_and_migrations_agree"]
    assert "op.create_table('orders'" in said
    assert "Write this one: uv run alembic revision --autogenerate" in said


@with_projects("other", ci=["core"])
@pytest.mark.ci
def test_failure_in_a_library_shows_the_lines_of_the_project(project: Project, copy: Path) -> None:
    code, said = run_tests(project, copy, "-x", "tests/orders", "-k", "stores_rows")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "> " in said
    assert "await session.commit()" in said
    assert "app/orders/router.py" in said
    assert "site-packages" not in said
    assert len(said.splitlines()) < 60, said
    _, said = run_tests(project, copy, "-x", "--full-trace", "tests/orders", "-k", "stores_rows")
    assert "site-packages" in said


@with_projects("core")
def test_forgotten_await_fails_its_own_test_and_no_other(project: Project, copy: Path) -> None:
    (copy / "tests/orders/test_orders.py").write_text(NO_AWAIT, encoding="utf-8")
    _, said = run_tests(project, copy, "tests/orders", "-p", "no:randomly")
    assert failures(said) == ["tests/orders/test_orders.py::test_forgets"]
    assert "`response` is a coroutine: an `await` is missing." in said
    assert said.splitlines()[-1].startswith("1 failed, 1 passed")
