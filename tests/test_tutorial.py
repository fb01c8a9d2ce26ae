"""The tutorial works: run its commands and snippets in order."""

from collections.abc import Callable

import pytest

from tests.conftest import PROJECTS
from tests.documents import Reader, blocks_of
from tests.rendering import Project, git, new_directory
from tests.serving import free_port
from tests.updating import make_clone

PAGE = "docs/tutorial.md"
# Some tests instead of all: the commands that run all of them run three times.
FEW = "-k 'bookmarks or test_migrations or test_document or test_health' --cov-fail-under=0"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("default", marks=pytest.mark.ci),
        pytest.param("postgresql", marks=pytest.mark.slow),
    ],
)
def test_the_tutorial_works(
    name: str,
    installed: Callable[[str], Project],
    record_property: Callable[[str, object], None],
) -> None:
    database = str(PROJECTS[name].get("database", "sqlite"))
    with new_directory("tutorial") as directory:
        make_clone(directory / "copier-fastapi-async")
        env = {
            "UV_PROJECT_ENVIRONMENT": str(installed(name).path / ".venv"),
            "PYTEST_ADDOPTS": FEW,
        }
        if database == "postgresql":  # on a free port
            address = f"postgres:postgres@localhost:{free_port()}"
            env["DATABASE_URL"] = f"postgresql+asyncpg://{address}/my-service"
        with Reader(directory, database, env) as reader:
            reader.follow(blocks_of(PAGE))
        said = git("log", "--format=%s", cwd=directory / "my-service").splitlines()
        assert said == ["Update the template to v99.0.0", "Add bookmarks", "Render the template"]
    record_property("tried", f"the tutorial with {database}: {reader.commands} commands")
