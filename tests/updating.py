"""Helpers for tests of updates: the template's releases, and a team's work on its project."""

import re
import shutil
import tomllib
from pathlib import Path

import yaml

from tests.rendering import ROOT, Project, commit_all, copy_working_tree, files_in, git

RELEASES: dict[str, str] = tomllib.loads((ROOT / "releases.toml").read_text(encoding="utf-8"))
PRESENT, FUTURE = "v999.0.0", "v1000.0.0"
# Files that an older release managed, and a later one no longer needs: an update deletes them.
GONE = [
    "tests/harness/session.py",
    "tests/harness/turns.py",
    "tests/isolation/test_guards.py",
    "tests/isolation/test_own_database.py",
]
TYPICAL_USER = ROOT / "tests/typical_user"
MONTHS = "Months of work"
"""The message of the team's commit."""


# ---- The template: its releases, the working tree, and a future release ----


def make_releases(directory: Path) -> Path:
    """Create a repository of the template with its recorded releases and two more.

    PRESENT is the working tree; FUTURE is a later release that changes everything it may.
    """
    make_clone(directory)
    git("tag", PRESENT, cwd=directory)
    release_the_future(directory)
    return directory


def make_clone(directory: Path) -> None:
    """Create a repository of the template with its recorded releases and the working tree."""
    git("clone", "--quiet", "--no-tags", "--no-checkout", ROOT, directory, cwd=ROOT)
    for tag, commit in RELEASES.items():
        git("tag", tag, commit, cwd=directory)
    copy_working_tree(directory)
    git("commit", "--quiet", "--allow-empty", "--message", "Present", cwd=directory)


# Files that a small project does not need for an update: each would be rendered and merged.
NOT_NEEDED = re.compile(
    r"template/(app/(core|items|users)|tests/(core|harness|isolation|items|openapi|patterns|users))/"
)
NEEDED = re.compile(r"/(__init__|health|config|guard|queries|backends)\.py$")


def make_small_releases(releases: Path, directory: Path) -> Path:
    """Make PRESENT and FUTURE with fewer files, for tests of the update command."""
    git("clone", "--quiet", releases, directory, cwd=releases)
    git("checkout", "--quiet", "-B", "main", PRESENT, cwd=directory)
    for tag in (PRESENT, FUTURE):
        git("read-tree", "--reset", "-u", tag, cwd=directory)
        for name in files_in(directory):
            if NOT_NEEDED.match(name) and not NEEDED.search(name):
                (directory / name).unlink()
        commit_all(directory, f"A small {tag}")
        git("tag", "--force", tag, cwd=directory)
    return directory


SENTINEL = re.compile(r"^ *# your own.* add .*them below$", re.MULTILINE | re.IGNORECASE)
RETIRED = ".editorconfig"
MOVED, MOVED_TO = "tests/harness/queries.py", "tests/harness/counting.py"
NEW_MANAGED, NEW_SEAM = "docs/audience.md", "app/hooks.py"
NEW_QUESTION = """
audience:
  type: str
  help: Who is it for?
  default: everybody

_min_copier_version"""


def release_the_future(template: Path) -> None:
    """Make the release that changes, bumps, adds, retires and moves all that docs/ allow."""
    for file in managed_sources(template):
        file.write_text(changed(file.read_text(encoding="utf-8"), file.suffixes), encoding="utf-8")

    pyproject = template / "template/pyproject.toml.jinja"
    edit(pyproject, r'"([\w\[\]-]+)>=([\w.]+)"', r'"\1>=\2,!=0.0.1"')

    copier_yml = template / "copier.yml"
    edit(copier_yml, r"\n_min_copier_version", NEW_QUESTION)
    managed, seam = template / "template" / f"{NEW_MANAGED}.jinja", template / "template" / NEW_SEAM
    managed.parent.mkdir()
    managed.write_text("# Audience\n\nThis is for {{ audience }}.\n", encoding="utf-8")
    seam.write_text('"""Your hooks."""\n', encoding="utf-8")
    edit(copier_yml, r"(_skip_if_exists:\n)", rf"\1  - /{NEW_SEAM}\n")

    (template / "template" / RETIRED).unlink()
    edit(copier_yml, r"(_exclude:\n)", rf"\1  - /{RETIRED}\n")

    moved = template / "template" / MOVED
    shutil.copy(moved, template / "template" / MOVED_TO)
    moved.write_text(
        '"""Moved to tests/harness/counting.py."""\n\n'
        "from tests.harness.counting import queries\n\n"
        '__all__ = ["queries"]\n',
        encoding="utf-8",
    )
    edit(
        template / "template/tests/conftest.py",
        r"tests\.harness\.queries",
        "tests.harness.counting",
    )

    edit(
        template / "CHANGELOG.md",
        r"\A(.*?)(?=^## )",
        r"\1## 1000.0.0 (2030-01-01)\n\n### Changed\n\n- Every line that there is.\n\n",
    )
    commit_all(template, "Future")
    git("tag", FUTURE, cwd=template)


def managed_sources(template: Path) -> list[Path]:
    """Return the sources of the managed files, except for the answers."""
    tree = (template / "tests/tree.txt").read_text(encoding="utf-8")
    found = []
    for name in re.findall(r"^managed +(\S+)", tree, re.MULTILINE):
        plain = template / "template" / name
        if name != ".copier-answers.yml":
            found.append(plain if plain.exists() else plain.with_name(f"{plain.name}.jinja"))
    return found


def changed(text: str, suffixes: list[str]) -> str:
    """Add a comment at the top, in the middle and at the end of a file."""
    mark = "##" if ".mako" in suffixes else "#"
    imports = re.match(r"(\{%.*%\}\n)*", text)
    assert imports
    head, body = text[: imports.end()], text[imports.end() :]
    gaps = [gap.end() for gap in re.finditer(r"\n\n(?=[^\s}\]])", body)]
    if gaps and ".mako" not in suffixes:
        middle = min(gaps, key=lambda gap: abs(gap - len(body) // 2))
        body = f"{body[:middle]}{mark} Changed in the middle.\n{body[middle:]}"
    if SENTINEL.search(body):
        body = SENTINEL.sub(lambda found: end_before(found[0], mark), body)
    elif body:
        gap = "\n\n" if ".py" in suffixes else ""
        body = f"{body}{gap}{mark} Changed at the end.\n"
    return f"{head}{mark} Changed at the top.\n{body}"


def end_before(sentinel: str, mark: str) -> str:
    """Add a line before the one below which users add theirs."""
    indent = sentinel[: len(sentinel) - len(sentinel.lstrip())]
    return f"{indent}{mark} Changed at the end.\n{sentinel}"


def edit(file: Path, pattern: str, replacement: str) -> None:
    """Replace a pattern in a file, which must contain it."""
    text = file.read_text(encoding="utf-8")
    edited, count = re.subn(pattern, replacement, text, flags=re.MULTILINE | re.DOTALL)
    assert count, f"{file} has no {pattern}"
    file.write_text(edited, encoding="utf-8")


def append(file: Path, text: str) -> None:
    """Append text to a file."""
    with file.open("a", encoding="utf-8") as open_file:
        open_file.write(text)


# ---- The team: months of work, in its own files ----


def work_as_a_typical_team(project: Project) -> None:
    """Add a feature, a setting, dependencies ...; delete one starter feature, edit another."""
    path = project.path
    if project.has_example:
        delete_the_items(path)
        edit_the_users(path)
    shutil.copytree(TYPICAL_USER, path, dirs_exist_ok=True)
    before = '"0001"' if project.has_example else "None"
    edit(path / "migrations/versions/0002_notes.py", r'"BEFORE"', before)
    edit(path / "migrations/versions/0002_notes.py", r"Revises: BEFORE", "Revises:")

    project.check("uv", "add", "--quiet", "humanize", "tenacity")
    project.check("uv", "add", "--quiet", "--dev", "icdiff")

    main = path / "app/main.py"
    edit(main, r"(?=^from app\.settings)", "from app.notes.router import router as notes_router\n")
    # Releases since 0.1.0 with the example have a line for each part of the state.
    started_at = r'((?:yield \{|^ +)"started_at": [^,}]+)'
    own_line = "\n" + " " * 12 if '"passwords": ' in main.read_text(encoding="utf-8") else " "
    edit(main, started_at, rf'\1,{own_line}"motto": "Nothing is lost"')
    edit(main, r"(?=^    return app$)", "    app.include_router(notes_router)\n")
    models = path / "app/models.py"
    if project.has_example:
        edit(models, r"^from app\.users", "from app.notes.models import Note\nfrom app.users")
        edit(models, r'__all__ = \["User"\]', '__all__ = ["Note", "User"]')
    else:
        append(models, '\nfrom app.notes.models import Note\n\n__all__ = ["Note"]\n')

    edit(path / "app/settings.py", r'(in upper case.*?"""\n)', r"\1\n    notes_per_page: int = 2\n")
    append(path / ".env.example", "NOTES_PER_PAGE=20\n")
    append(path / ".gitignore", "notes.txt\n")
    fixtures = path / "tests/fixtures.py"
    edit(fixtures, r"import AsyncEngine", "import AsyncEngine, AsyncSession")
    edit(fixtures, r"(?=^from app\.settings)", "from app.notes.models import Note\n")
    append(fixtures, FIXTURE)
    edit(path / "poe_tasks.toml", r"sequence = \[\]", f"sequence = [{CI_STEP}]")
    if (path / "tests/openapi").exists():
        project.check("uv", "run", "pytest", "tests/openapi/test_document.py", "--snapshot-update")
    commit_all(path, MONTHS)


FIXTURE = '''

def pytest_configure(config: pytest.Config) -> None:
    """Register our markers, and let through the warnings that we know of."""
    config.addinivalue_line("markers", "slow: takes its time")
    config.addinivalue_line("filterwarnings", "ignore:Old notes:DeprecationWarning")


@pytest.fixture
async def note(db_session: AsyncSession) -> Note:
    """A note."""
    note = Note(text="eggs")
    db_session.add(note)
    await db_session.commit()
    return note
'''
CI_STEP = "{ cmd = \"python -c 'import humanize, tenacity'\" }"
ENDPOINT = '''

@router.get("/users/greeting")
async def greet() -> str:
    """Greet whoever comes."""
    return "Welcome"
'''
ENDPOINT_TEST = """from tests.http_client import AsyncClient


async def test_greeting(client: AsyncClient) -> None:
    assert (await client.get("/users/greeting")).json() == "Welcome"
"""


def delete_the_items(path: Path) -> None:
    """Delete a starter feature, as a team does before its first deployment."""
    shutil.rmtree(path / "app/items")
    shutil.rmtree(path / "tests/items")
    edit(path / "app/main.py", r"^from app\.items[^\n]+\n", "")
    edit(path / "app/main.py", r",\s+\"feed\": Feed\([^)]*\)", "")
    edit(path / "app/main.py", r"^ +app\.include_router\(items_router\)\n", "")
    # Releases since 0.1.0 have a job for items.
    edit(path / "app/main.py", r"delete_old_item_events, |(?=^app = )", "")
    edit(path / "app/models.py", r"^from app\.items[^\n]+\n", "")
    edit(path / "app/models.py", r'"Item", ("ItemEvent", )?("Tag", )?', "")
    edit(path / "tests/fixtures.py", r', "tests\.items\.fixtures"', "")
    [migration] = path.glob("migrations/versions/0001_*.py")
    edit(migration, r"^    op\.create_table\(\n +\"items\".*?(?=\n\n\ndef)", "")
    edit(
        migration, r"^( +op\.drop_table\(\"tags\"\)\n)? +op\.drop_index.+_table\(\"items\"\)\n", ""
    )
    edit(migration, r"(drop_table\(\"users\"\)\n)( +sa\.Enum[^\n]+\n)?", r"\1")
    edit(migration, r"\)\n\n\n\ndef", ")\n\n\ndef")


def edit_the_users(path: Path) -> None:
    """Build on a starter feature."""
    append(path / "app/users/router.py", ENDPOINT)
    (path / "tests/users/test_greeting.py").write_text(ENDPOINT_TEST, encoding="utf-8")


def replace_checks(path: Path, command: str) -> None:
    """Replace the project's checks with a command, and commit that."""
    table = f'\n[tool.poe.tasks.check]\nshell = """\n{command}\n"""\n'
    append(path / "poe_tasks.toml", table)
    append(path / ".gitignore", "uv.lock\n")
    commit_all(path, "Replace the checks")


# ---- The result of an update ----


def update(project: Project, *options: str, **env: str) -> tuple[int, str]:
    """Run the project's update command as a user does; return its exit code and output."""
    done = project.run("uv", "run", "scripts/update.py", *options, timeout=500, **env)
    return done.returncode, done.stdout


def lost_lines(path: Path) -> list[str]:
    """Return the lines that the team has written and that are missing or out of order."""
    start, end = (
        git("log", "--format=%H", f"--grep=^{message}$", "-1", cwd=path).strip()
        for message in ("Lock", MONTHS)
    )
    changed = git("diff", "--name-only", "--diff-filter=AM", start, end, cwd=path).split()
    lost = []
    for name in changed:
        difference = git("diff", "--unified=0", start, end, "--", name, cwd=path)
        written = re.findall(r"^\+(?!\+\+ )(.*)$", difference, re.MULTILINE)
        text = (path / name).read_text(encoding="utf-8") if (path / name).exists() else ""
        now = iter(text.splitlines())
        if name != "uv.lock":
            lost += [f"{name}: {line}" for line in written if line not in now]
    return lost


def deleted(path: Path) -> list[str]:
    """Return the names of HEAD's files that no longer exist."""
    return git("diff", "--name-only", "--diff-filter=D", "HEAD", cwd=path).split()


def not_managed(path: Path) -> dict[str, str]:
    """Return the files that do not belong to the template: seams, starters and the team's."""
    tree = (ROOT / "tests/tree.txt").read_text(encoding="utf-8")
    managed = {*re.findall(r"^managed +(\S+)", tree, re.MULTILINE), *GONE, "uv.lock"}
    names = git("ls-files", "-z", cwd=path).split("\0")
    return {
        name: (path / name).read_text(encoding="utf-8")
        for name in names
        if name and name not in managed
    }


def answered(path: Path) -> dict[str, object]:
    """Return a project's answers, without its origin."""
    recorded = yaml.safe_load((path / ".copier-answers.yml").read_text(encoding="utf-8"))
    return {name: answer for name, answer in recorded.items() if not name.startswith("_")}
