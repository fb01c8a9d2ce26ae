"""Fixtures of the template's tests: a snapshot of the template, and projects rendered from it."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.mutants import copied
from tests.pairwise import all_sets, choices
from tests.quickly import hurried
from tests.rendering import (
    Answers,
    Project,
    Workshop,
    find_python,
    install,
    isolate,
    new_directory,
    render,
    run,
    take_snapshot,
)
from tests.sharing import shared
from tests.updating import make_releases

# The projects that many tests install and use.
PROJECTS: dict[str, Answers] = {
    "default": {},
    "core": {"example": False},
    "postgresql": {"database": "postgresql"},
    "other": {
        "database": "postgresql",
        "example": False,
        "project_name": '"Ünïcode" \\ it\'s {{ fine }}',
        "http_client": "httpx2",
        "ci": "gitlab",
        "docker": False,
        "license": "Proprietary",
    },
}

collect_ignore = [
    "typical_user",
    "faulty",
    "neighbours",
    "orders",
    "unhurried",
]  # what goes into rendered projects

# The properties that tests record, and their headings at the end of the run.
SUMMARIES = {
    "tried": "what was tried",
    "mutant": "planted faults, and the test that caught each",
}

# How many sets of answers are tried: the same few in each run, or others each time with
# --hypothesis-profile=slow. Each one renders a project, which takes time.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", UNHURRIED, max_examples=25, derandomize=True, database=None)
settings.register_profile("slow", UNHURRIED, max_examples=1000)
settings.load_profile("quick")

DEFAULT = "not ci and not slow"
"""The tests that the README's command runs, as in pytest.toml."""
MOST_INSTALLED = 8
"""How many projects the default tests may install: each takes as long as a hundred small tests."""


# ---- The run ----


def pytest_configure(config: pytest.Config) -> None:
    """Create the directory that all workers of the run share."""
    if hasattr(config, "workerinput"):
        shared.directory = Path(config.workerinput["shared"])
    else:
        directory = tempfile.TemporaryDirectory(
            prefix="template-tests-", ignore_cleanup_errors=True
        )
        shared.directory = Path(directory.name).resolve()
        config.add_cleanup(directory.cleanup)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where this directory is."""
    node.workerinput["shared"] = str(shared.directory)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that install projects, or the run would wait for the last of them."""
    long = ("team", "workshop", "installed")
    items.sort(key=lambda item: [name not in getattr(item, "fixturenames", ()) for name in long])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if the default tests have installed too many projects."""
    is_default = session.config.getoption("markexpr") == DEFAULT
    if is_default and shared.count_installed() > MOST_INSTALLED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("copier"))
        yield


@pytest.fixture(scope="session")
def template(isolated: None) -> Path:
    """A repository with the template as it is now."""
    return shared.once("template", take_snapshot)


@pytest.fixture(scope="session")
def releases(isolated: None) -> Path:
    """The template with its releases, the working tree and a simulated future."""
    return shared.once("releases", make_releases)


@pytest.fixture
def rendered(template: Path, tmp_path: Path) -> Callable[..., Path]:
    """Renders a project with the given answers."""

    def rendered(**answers: object) -> Path:
        with hurried():
            return render(template, tmp_path / f"rendered-{len(list(tmp_path.iterdir()))}", answers)

    return rendered


@pytest.fixture(scope="session")
def installed(template: Path) -> Callable[[str], Project]:
    """Returns one of PROJECTS, which all tests and workers share, and must not change."""

    def installed(name: str) -> Project:
        answers = PROJECTS[name]
        directory = shared.once(
            name, lambda directory: install(template, directory / "my-service", answers)
        )
        return Project(directory / "my-service", answers)

    return installed


@pytest.fixture(scope="session")
def workshop(isolated: None) -> Iterator[Callable[[str], Workshop]]:
    """Returns the workshop for projects on a version of Python."""
    made: dict[str, Workshop] = {}

    def workshop(python_version: str) -> Workshop:
        if python_version not in made:
            place = directories.enter_context(new_directory("workshop")) / "my-service"
            place.mkdir()
            python = find_python(python_version) or python_version  # uv may download it
            done = run("uv", "venv", "--quiet", "--python", python, cwd=place)
            if done.returncode != 0:
                pytest.skip(f"there is no Python {python_version}: {done.stdout}")
            made[python_version] = Workshop(place)
        return made[python_version]

    with ExitStack() as directories:
        yield workshop


@pytest.fixture
def project(request: pytest.FixtureRequest, installed: Callable[[str], Project]) -> Project:
    """One of PROJECTS: see `with_projects`."""
    return installed(request.param)


def with_projects(
    *names: str, ci: Sequence[str] = (), slow: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Run a test with each of these PROJECTS; with those in `ci` and `slow`, only in that tier."""
    marked = [(name, pytest.mark.ci) for name in ci] + [(name, pytest.mark.slow) for name in slow]
    named = [*names, *(pytest.param(name, marks=mark) for name, mark in marked)]
    return pytest.mark.parametrize("project", named, indirect=True)


@pytest.fixture
def copy(project: Project, tmp_path: Path) -> Path:
    """A copy of the project, to edit."""
    return copied(project, tmp_path / "copy")


@pytest.fixture
def default_project(installed: Callable[[str], Project]) -> Project:
    """The project with all defaults."""
    return installed("default")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried (`record_property("tried", ...)`), and which test caught each fault."""
    said = [
        (name, str(value))
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
    ]
    if rendered := sum(int(value) for name, value in said if name == "combinations"):
        possible = len(all_sets(choices()))
        line = f"combinations of the choices, rendered and checked: {rendered} of {possible}"
        said.append(("tried", line))
    if installed := shared.count_installed():
        said.append(("tried", f"projects installed and shared: {installed}"))
    for kind, title in SUMMARIES.items():
        if lines := sorted(value for name, value in said if name == kind):
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.line(line)
