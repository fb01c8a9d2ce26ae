"""An update brings everything in a release, and keeps everything that a team has made."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from copier import run_update

from tests.conftest import PROJECTS
from tests.mutants import Mutant, plant
from tests.pairwise import choices, pairwise
from tests.promises import FILES
from tests.rendering import Answers, Project, Workshop, commit_all, git, render
from tests.updating import (
    FUTURE,
    GONE,
    MOVED,
    MOVED_TO,
    NEW_MANAGED,
    NEW_SEAM,
    PRESENT,
    RELEASES,
    RETIRED,
    answered,
    append,
    deleted,
    lost_lines,
    not_managed,
    replace_checks,
    update,
    work_as_a_typical_team,
)

# The licence is a seam, and the Python version a number: updates merge them without other answers.
ALIKE = {"license", "python_version"}
SETS = pairwise({name: offered for name, offered in choices().items() if name not in ALIKE})
# Each database with the example and without; the others are slow.
NEWEST = list(RELEASES)[-1]
A_FEW_TESTS = "pytest tests/notes tests/core/test_migrations.py"
"""The team's tests, and those that import everything; CI runs all checks."""


def files_in(directory: Path) -> dict[str, str]:
    return {
        file.relative_to(directory).as_posix(): file.read_text(encoding="utf-8")
        for file in directory.rglob("*")
        if file.is_file() and ".git" not in file.parts
    }


# ---- Without edits ----


@pytest.mark.parametrize(
    ("release", "name"),
    [
        *((release, "other") for release in RELEASES),
        *(
            pytest.param(release, name, marks=pytest.mark.ci)
            for release, name in [*product(RELEASES, PROJECTS), (PRESENT, "default")]
            if name != "other"
        ),
    ],
)
def test_an_update_without_edits_brings_what_a_fresh_project_has(
    releases: Path, tmp_path: Path, release: str, name: str
) -> None:
    project = render(releases, tmp_path / "project", PROJECTS[name], release)
    commit_all(project, "Start")
    before = files_in(project)
    fresh = files_in(render(releases, tmp_path / "fresh", PROJECTS[name], PRESENT))
    for kind, file, _ in FILES:  # the user's files stay as they were
        if file in before and kind != "managed":
            fresh[file] = before[file]
        elif kind == "starter":
            fresh.pop(file, None)
    # ... and so do starters that a fresh project no longer has.
    fresh |= {file: text for file, text in before.items() if file.startswith("tests/items/")}
    for _ in range(2):
        run_update(project, vcs_ref=PRESENT, defaults=True, overwrite=True, quiet=True)
        assert files_in(project) == fresh
        if git("status", "--porcelain", cwd=project):
            commit_all(project, "Update")


def test_the_future_without_edits_is_the_same_as_a_fresh_project(
    releases: Path, tmp_path: Path
) -> None:
    project = render(releases, tmp_path / "project", {}, PRESENT)
    commit_all(project, "Start")
    kept = (project / RETIRED).read_text(encoding="utf-8")
    run_update(project, vcs_ref=FUTURE, defaults=True, overwrite=True, quiet=True)
    fresh = files_in(render(releases, tmp_path / "fresh", {}, FUTURE))
    assert files_in(project) == {**fresh, RETIRED: kept}
    assert {NEW_MANAGED, NEW_SEAM, MOVED, MOVED_TO} <= fresh.keys()
    assert RETIRED not in fresh


# ---- With months of work ----


@pytest.fixture
def team(
    releases: Path, workshop: Callable[[str], Workshop], request: pytest.FixtureRequest
) -> Project:
    """A project that a team has worked on for months."""
    release, answers = request.param
    project = workshop(answers.get("python_version", "3.11")).install(releases, answers, release)
    work_as_a_typical_team(project)
    return project


def teams(*parameters: tuple[str, Answers]) -> pytest.MarkDecorator:
    """Run a test for teams that began with these releases and answers; one Python per worker."""
    return pytest.mark.parametrize(
        "team",
        [
            pytest.param(
                (release, answers),
                id="-".join([release, *map(str, answers.values())]),
                marks=pytest.mark.xdist_group(f"teams on {answers.get('python_version', '3.11')}"),
            )
            for release, answers in parameters
        ],
        indirect=True,
    )


def check_update(team: Project, *options: str) -> str:
    """Update a team's project: nothing is lost, nothing is left to do, all checks pass."""
    answers, theirs = answered(team.path), not_managed(team.path)
    code, said = update(team, *options)
    assert code == 0, said
    now = files_in_git(team.path)
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", "".join(now.values()), re.MULTILINE)
    assert lost_lines(team.path) == []
    gone = deleted(team.path)  # each test checks this
    assert {name: now.get(name) for name in theirs if name not in gone} == {
        name: text for name, text in theirs.items() if name not in gone
    }
    asked_for = dict(option.split("=") for option in options if "=" in option)
    changed = {name for name, answer in answers.items() if answered(team.path)[name] != answer}
    assert changed == asked_for.keys()
    return said


def files_in_git(path: Path) -> dict[str, str]:
    names = git("ls-files", "-z", cwd=path).split("\0")
    return {name: (path / name).read_text(encoding="utf-8") for name in names if name}


@teams((NEWEST, {}))
def test_months_of_work_are_kept_by_this_release_and_by_one_that_touches_everything(
    team: Project,
) -> None:
    replace_checks(team.path, A_FEW_TESTS)
    check_update(team, "--to", PRESENT)
    assert deleted(team.path) == GONE
    commit_all(team.path, "Update")
    check_future(team)


@pytest.mark.ci
@teams((NEWEST, {"database": "postgresql"}))
def test_months_of_work_on_the_newest_release_are_kept(team: Project) -> None:
    check_update(team, "--to", PRESENT)
    assert deleted(team.path) == GONE


@pytest.mark.slow
@teams(*((NEWEST, answers) for answers in SETS))
def test_months_of_work_with_other_answers_are_kept(team: Project) -> None:
    check_update(team, "--to", PRESENT)
    assert deleted(team.path) == GONE


@pytest.mark.ci
@teams(*((release, SETS[0]) for release in list(RELEASES)[:-1]))
def test_months_of_work_on_any_release_are_kept(team: Project) -> None:
    check_update(team, "--to", PRESENT)
    assert set(deleted(team.path)) <= set(GONE)


@pytest.mark.slow
@teams((PRESENT, {}), (PRESENT, PROJECTS["other"]))
def test_months_of_work_are_kept_by_a_release_that_touches_everything(team: Project) -> None:
    check_future(team)


def check_future(team: Project) -> None:
    """Update a team's project to a release that changes every file."""
    said = check_update(team)
    assert f"{FUTURE} is available" in said
    assert "- Every line that there is." in said
    assert deleted(team.path) == []
    assert answered(team.path)["audience"] == "everybody"
    assert (team.path / NEW_SEAM).exists()
    assert "all checks pass" in said


@pytest.mark.slow
@teams((PRESENT, {}))
def test_changed_answers_change_the_project_and_keep_months_of_work(team: Project) -> None:
    data = ("--data", "database=postgresql", "--data", "ci=gitlab", "--data", "docker=false")
    check_update(team, "--to", PRESENT, *data)
    assert sorted(deleted(team.path)) == [
        ".dockerignore",
        ".github/dependabot.yml",
        ".github/workflows/ci.yml",
        ".github/workflows/template.yml",
        "Dockerfile",
        "compose.yaml",
    ]
    assert (team.path / ".gitlab-ci.yml").exists()
    assert "asyncpg" in (team.path / "uv.lock").read_text(encoding="utf-8")
    settings = (team.path / ".env.example").read_text(encoding="utf-8")
    assert "DATABASE_URL=postgresql+asyncpg://" in settings
    assert "NOTES_PER_PAGE=20" in settings


# ---- With the example, and without ----


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.ci)])
def test_one_command_deletes_the_example_and_one_brings_it_back(
    releases: Path, tmp_path: Path, database: str
) -> None:
    answers = {"database": database}
    project = Project(render(releases, tmp_path / "project", answers, PRESENT), answers)
    replace_checks(project.path, "true")  # the same files pass them in tests/test_project.py
    for example in (False, True):
        said = check_answered(project, example=example)
        assert ("- migrations/versions/0001_users_and_items.py is deleted" in said) is not example
        fresh = tmp_path / f"fresh-{example}"
        render(releases, fresh, {**answers, "example": example}, PRESENT)
        replace_checks(fresh, "true")
        assert files_in_git(project.path) == files_in_git(fresh)


@pytest.mark.ci
def test_the_example_of_the_first_release_is_deleted_after_an_update(
    releases: Path, tmp_path: Path
) -> None:
    first = next(iter(RELEASES))
    project = Project(render(releases, tmp_path / "project", {}, first), {})
    append(project.path / "app/main.py", "\nOURS = 1\n")
    replace_checks(project.path, "true")
    assert update(project, "--to", PRESENT)[0] == 0
    commit_all(project.path, "Update")
    check_answered(project, example=False)
    assert not list(project.path.glob("*/users/*.py"))
    made = render(releases, tmp_path / "first", {"example": False}, first)
    for seam in ("app/main.py", "app/models.py", "app/settings.py", "tests/fixtures.py"):
        text = (made / seam).read_text(encoding="utf-8")
        ours = "\nOURS = 1\n" if seam == "app/main.py" else ""
        assert (project.path / seam).read_text(encoding="utf-8") == text + ours


def check_answered(project: Project, *, example: bool) -> str:
    """Change the answer to `example`, at PRESENT, and commit the changes."""
    code, said = update(project, "--to", PRESENT, "--data", f"example={example}")
    assert code == 0, said
    assert "all checks pass" in said
    [keep] = re.findall(r"^To keep it: +(.*)$", said, re.MULTILINE)
    project.check("sh", "-c", keep)
    return said


# ---- With edits of the template's files ----


def test_edits_that_many_teams_make_are_merged(releases: Path, tmp_path: Path) -> None:
    edits = {
        "ruff.toml": ('    "S101", ', '    "S104", # ours\n    "S101", '),
        ".coveragerc": ("# To make the checks fail", "fail_under = 60\n# To make the checks fail"),
        "Dockerfile": ("RUN useradd", "RUN apt-get update && apt-get install -y git\nRUN useradd"),
    }
    project = render(releases, tmp_path / "project", {}, PRESENT)
    for name, (text, edited) in edits.items():
        plant(Mutant(name, name, text, edited), project)
    commit_all(project, "Edits")
    run_update(project, vcs_ref=FUTURE, defaults=True, overwrite=True, quiet=True)
    fresh = files_in(render(releases, tmp_path / "fresh", {}, FUTURE))
    merged = files_in(project)
    for name, (text, edited) in edits.items():
        assert merged[name] == fresh[name].replace(text, edited)


@pytest.mark.ci
@teams((PRESENT, {"example": False, "docker": True}))
def test_edited_lines_of_the_template_are_named_and_can_be_had_back(team: Project) -> None:
    for name in ("ruff.toml", "app/core/health.py"):
        file = team.path / name
        first, rest = file.read_text(encoding="utf-8").split("\n", maxsplit=1)
        file.write_text(f"{first} And ours.\n{rest}", encoding="utf-8")
    append(team.path / "tests/conftest.py", "\n\nOURS = 1\n")
    append(team.path / "Dockerfile", "# Ours.\n")
    commit_all(team.path, "Edits")
    before = files_in_git(team.path)

    code, said = update(team, "--data", "docker=false")

    assert code == 1
    lines = (team.path / "tests/conftest.py").read_text(encoding="utf-8").splitlines()
    end = lines.index("<<<<<<< before updating") + 1
    for place in ("ruff.toml:1", "app/core/health.py:1", f"tests/conftest.py:{end}"):
        assert f"* {place}: conflict" in said
    unmerged = git("diff", "--name-only", "--diff-filter=U", cwd=team.path).split()
    assert unmerged == ["app/core/health.py", "ruff.toml", "tests/conftest.py"]
    assert said.count("\n* ") == 4, said
    [restore] = re.findall(r"^\* Dockerfile: .*To restore it: (.*)$", said, re.MULTILINE)
    team.check("sh", "-c", restore)
    assert (team.path / "Dockerfile").read_text(encoding="utf-8") == before["Dockerfile"]

    [go_back] = re.findall(r"^To go back: +(.*)$", said, re.MULTILINE)
    team.check("sh", "-c", go_back)
    assert git("status", "--porcelain", cwd=team.path) == ""
    assert files_in_git(team.path) == before
