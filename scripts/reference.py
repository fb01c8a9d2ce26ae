"""Write the reference pages of the documentation from their sources.

    uv run python scripts/reference.py

The questions come from copier.yml, the owners of files from tests/tree.txt, and everything else
from the files in template/. A test checks that the pages are up to date.
"""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "template"
PAGES = ROOT / "docs/reference"
# The answers with the most files.
ANSWERS = {
    "database": "postgresql",
    "docker": True,
    "example": True,
    "ci": "github",
    "http_client": "httpx",
    "project_name": "My Service",
    "project_slug": "my-service",
    "description": "A service",
    "python_version": "3.11",
}
GENERATED = "<!-- Written by scripts/reference.py: edit the source that it names, then run it. -->"


def main() -> None:
    """Write all pages."""
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page by name."""
    made = {
        "questions.md": questions,
        "files.md": files,
        "fixtures.md": fixtures,
        "settings.md": settings,
        "commands.md": commands,
        "errors.md": errors,
    }
    return {name: f"{make().strip()}\n\n{GENERATED}\n" for name, make in made.items()}


# ---- Helpers ----


def read(path: Path) -> str:
    """Return the text of a file in template/, rendered if it contains Jinja."""
    if path.exists():
        return path.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],  # like Copier
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701
    )
    source = path.with_name(f"{path.name}.jinja").relative_to(ROOT)
    return environment.get_template(source.as_posix()).render(ANSWERS)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )


def code(text: str) -> str:
    """Return `text` as Markdown code."""
    return f"`{text}`" if text else ""


def first_paragraph(docstring: str | None) -> str:
    """Return the first paragraph of a docstring in one line."""
    paragraph = (docstring or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`")


def sentence(docstring: str | None) -> str:
    """Return the first sentence of a docstring."""
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", first_paragraph(docstring))[0]


# ---- Questions ----


def questions() -> str:
    """Return the questions that Copier asks."""
    asked: list[tuple[str, dict[str, Any]]] = []
    not_asked: list[tuple[str, dict[str, Any]]] = []
    for name, question in yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8")).items():
        if not name.startswith("_"):
            (asked if question.get("ask", True) else not_asked).append((name, question))
    return f"""\
# Questions

`copier copy` asks these questions. `--defaults` takes the default of each, and `--data NAME=VALUE`
answers one:

{table(HEAD_OF_QUESTIONS, [row_of_question(*each) for each in asked])}

These have a default that suits nearly everybody. Copier only asks them with `--ask NAME`:

{table(HEAD_OF_QUESTIONS, [row_of_question(*each) for each in not_asked])}

The answers are in `.copier-answers.yml`. Do not edit that file: to change an answer later, run
`uv run scripts/update.py --data NAME=VALUE`, see [Change an
answer](../updates.md#change-an-answer).
"""


HEAD_OF_QUESTIONS = ("name", "question", "answers", "default")


def row_of_question(name: str, question: Mapping[str, object]) -> tuple[str, ...]:
    """Return a row of the table of questions."""
    choices = question.get("choices")
    if isinstance(choices, dict):
        choices = list(choices.values())
    answers = ", ".join(map(code, choices)) if isinstance(choices, list) else "text"
    default = question["default"]
    if question["type"] == "bool":
        answers, default = "`true`, `false`", str(default).lower()
    derived = isinstance(default, str) and "{%" in default
    shown = "the name in lowercase letters, digits and hyphens" if derived else code(str(default))
    return code(name), str(question["help"]), answers, shown


# ---- Files ----

OWNERS = {
    "managed": "template",
    "seam": "**you**",
    "starter": "**you**, may be deleted",
}


def files() -> str:
    """Return who owns which file."""
    tree = (ROOT / "tests/tree.txt").read_text(encoding="utf-8")
    groups: dict[str, list[tuple[str, ...]]] = {}
    for line in tree.splitlines():
        kind, name, *needs = line.split()
        if kind in OWNERS:
            parent = f"{Path(name).parent.as_posix()}/" if "/" in name else ""
            row = (code(name.removeprefix(parent)), OWNERS[kind], description(name), *needs)
            groups.setdefault(parent, []).append((*row, "")[:4])
    sections = [
        f"## {code(group) if group else 'The root of the project'}\n\n"
        + table(("file", "owner", "what it is", "only with"), rows)
        for group, rows in groups.items()
    ]
    return """\
# Files

An update merges its changes into the files of the template, keeps your edits, and names each
conflict. It never changes the files that are yours. [Who owns which
file](../updates.md#who-owns-which-file) says where your own code goes.

""" + "\n\n".join(sections)


def description(name: str) -> str:
    """Return the first sentence of a module's docstring."""
    path = TEMPLATE / name
    if path.suffix != ".py":
        return DESCRIPTIONS.get(name, "")
    return sentence(ast.get_docstring(ast.parse(read(path))))


DESCRIPTIONS = {
    ".checks.toml": "The template's tasks for `uv run poe`.",
    ".copier-answers.yml": "Your answers, and the release of the template.",
    ".coveragerc": "What coverage measures.",
    ".dockerignore": "What is left out of the image.",
    ".editorconfig": "How editors indent.",
    ".env.example": "All settings, with example values; new checkouts and tests read it.",
    ".gitattributes": "How git stores line endings.",
    ".gitignore": "What git ignores.",
    ".gitlab-ci.yml": "The checks, and a job that proposes updates.",
    ".pre-commit-config.yaml": "The checks before a commit.",
    ".github/dependabot.yml": "Proposes updates of dependencies.",
    ".github/workflows/ci.yml": "The checks.",
    ".github/workflows/template.yml": "Proposes updates of the template.",
    "CHANGELOG.md": "The changes of your service.",
    "Dockerfile": "The container image.",
    "LICENSE": "The licence that you chose.",
    "README.md": "How to run, test, extend, deploy and update the service.",
    "compose.yaml": "The service as in production, on your machine.",
    "migrations/script.py.mako": "The pattern of new migrations.",
    "mypy.ini": "How types are checked.",
    "poe_tasks.toml": "Your tasks, and your own checks.",
    "pyproject.toml": "The dependencies, and the settings of uv, FastAPI and Alembic.",
    "pytest.toml": "How tests run.",
    "renovate.json": "Proposes updates of dependencies.",
    "ruff.toml": "The rules for format and lint.",
}


# ---- Fixtures ----


class Fixture(NamedTuple):
    """A fixture: its name, scope and description."""

    name: str
    scope: str
    description: str


def fixtures() -> str:
    """Return the fixtures of a rendered project."""
    of_all = [*fixtures_in("conftest.py"), *fixtures_in("harness/queries.py")]
    special = fixtures_in("harness/standalone.py")
    example = [*fixtures_in("users/fixtures.py"), *fixtures_in("items/fixtures.py")]
    return f"""\
# Fixtures

## For every test

They are in `tests/conftest.py` and `tests/harness/`. Ask for `client` to send requests, and for
`db_session` to look into the database.

{table_of_fixtures(of_all)}

## For tests with their own event loop

{table_of_fixtures(special)}

## Yours

`tests/fixtures.py` is yours, and so are these. The first one is needed; the others come with the
example.

{table_of_fixtures([*fixtures_in("fixtures.py"), *example])}

## Markers

{table(("marker", "what it does"), markers())}
"""


def fixtures_in(name: str) -> list[Fixture]:
    """Read the fixtures of a module in tests/."""
    found = []
    for node in ast.parse(read(TEMPLATE / "tests" / name)).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for decorator in map(ast.unparse, node.decorator_list):
            if decorator.startswith("pytest.fixture"):
                scope = re.search(r"scope='(\w+)'", decorator)
                docstring = first_paragraph(ast.get_docstring(node))
                found.append(Fixture(node.name, scope[1] if scope else "function", docstring))
    return found


def table_of_fixtures(found: list[Fixture]) -> str:
    """Return a table of fixtures."""
    rows = [(code(each.name), each.scope, each.description) for each in found]
    return table(("fixture", "scope", "what a test gets"), rows)


def markers() -> Iterator[tuple[str, ...]]:
    """Read the markers that the harness registers."""
    for module in sorted((TEMPLATE / "tests/harness").glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("addinivalue_line"):
                kind, line = node.args
                if ast.literal_eval(kind) == "markers" and isinstance(line, ast.Constant):
                    name, _, meaning = str(line.value).partition(": ")
                    yield code(f"@pytest.mark.{name}"), meaning


# ---- Settings ----


def settings() -> str:
    """Return the settings of a rendered project."""
    core = fields_in(TEMPLATE / "app/core/config.py")
    own = fields_in(TEMPLATE / "app/settings.py")
    known = {**core, **own}
    sections, shown = [], set()
    for group in read(TEMPLATE / ".env.example").strip().split("\n\n"):
        names = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", group, re.MULTILINE)
        words = re.sub(r"^(?:# )?[A-Z_]+=.*$", "", group, flags=re.MULTILINE)
        text = " ".join(re.sub(r"^# ?", "", words, flags=re.MULTILINE).split())
        text = re.sub(r"(?<![\w`])([A-Z]+(?:_[A-Z]+)+|@router\.\S+|/\w+(?:\.json)?)", r"`\1`", text)
        if names:
            shown |= {name for name, _ in names}
            rows = [row_of_setting(name, value, known) for name, value in names]
            sections.append(f"{text}\n\n{table(HEAD_OF_SETTINGS, rows)}")
    others = [row_of_setting(name, "", known) for name in known if name not in shown]
    return f"""\
# Settings

Each setting is an environment variable, and a field of `Settings` in `app/settings.py` or of its
base class in `app/core/config.py`. The service reads the environment, then `.env`; a fresh
checkout without `.env` reads `.env.example`. Without a default, a setting is required.

{(chr(10) * 2).join(sections)}

These are not in `.env.example`:

{table(HEAD_OF_SETTINGS, others)}

The tests ignore the environment and `.env`. They read `.env.example`, and the fixture `settings`
in `tests/fixtures.py` has the last word. `TEST_DATABASE_URL` names another database for them, see
[Which database](../isolation.md#which-database).
"""


HEAD_OF_SETTINGS = ("variable", "type", "default", "example")


def fields_in(file: Path) -> dict[str, tuple[str, str]]:
    """Read the fields of settings classes: their types and defaults, as Python."""
    found = {}
    for node in ast.walk(ast.parse(read(file))):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    found[field.target.id.upper()] = (type_of(field), default_of(field.value))
    return found


def type_of(field: ast.AnnAssign) -> str:
    """Return the type of a field, without its validators."""
    annotation = field.annotation
    while isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        inner = annotation.slice
        annotation = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
    text = ast.unparse(annotation).removesuffix(" | None")
    choices = re.fullmatch(r"Literal\[(.*)\]", text)
    named = {
        "CommaSeparated": "names with commas between them",
        "DatabaseUrl": "URL",
        "SecretStr": "secret",
    }
    return choices[1].replace("'", "`") if choices else named.get(text, code(text))


def default_of(value: ast.expr | None) -> str:
    """Return a default as an environment variable would set it."""
    if isinstance(value, ast.Call):  # Field(default=...)
        values = [word.value for word in value.keywords if word.arg == "default"]
        value = values[0] if values else None
    if value is None:
        return "required"
    plain = eval(ast.unparse(value), {"__builtins__": {}})  # noqa: S307
    if isinstance(plain, tuple):
        plain = ",".join(plain)
    if isinstance(plain, bool):
        plain = str(plain).lower()
    return "not set" if plain in {None, ""} else code(str(plain))


def row_of_setting(
    name: str, example: str, known: Mapping[str, tuple[str, str]]
) -> tuple[str, ...]:
    """Return a row of the table of settings; some variables are for other programs."""
    kind, default = known.get(name, ("", ""))
    return code(name), kind, default, code(example)


# ---- Commands ----


def commands() -> str:
    """Return the commands of a rendered project."""
    tasks: dict[str, str] = {}
    for name in (".checks.toml", "poe_tasks.toml"):
        for task, content in tomllib.loads(read(TEMPLATE / name))["tool"]["poe"]["tasks"].items():
            tasks[task] = content["help"]
    rows = [(code(f"uv run poe {task}"), text) for task, text in tasks.items()]
    readme = read(TEMPLATE / "README.md")
    test = readme.split("## Test it")[1].split("```sh\n")[1].split("```")[0]
    tests = [
        (code(command), comment[:1].upper() + comment[1:])
        for command, comment in re.findall(r"^(uv run pytest.*?)\s+# (.*)$", test, re.MULTILINE)
    ]
    return f"""\
# Commands

Run them in the root of your project.

## The service

{table(("command", "what it does"), SERVICE)}

## Tests

{table(("command", "what it does"), tests)}

All options of pytest and its plugins work. These are the template's own settings, in
`pytest.toml`; `-o NAME=VALUE` sets one for a single run:

{table(("setting", "default", "what it does"), list(settings_of_pytest()))}

## Tasks

`uv run poe` lists them, with yours in `poe_tasks.toml`.

{table(("command", "what it does"), rows)}

## Updates

{table(("command", "what it does"), list(options_of_update()))}

It exits with 0 if everything is done or there is nothing to do, with 1 if something needs your
attention (with `--check`: if there is a newer release), and with 2 if the update is refused.
"""


SERVICE = [
    (
        "`uv run fastapi dev`",
        "Start the service at <http://127.0.0.1:8000>; it reloads on changes",
    ),
    ("`uv run fastapi run`", "Start the service as in production"),
    ("`uv run alembic upgrade head`", "Migrate the database"),
    (
        '`uv run alembic revision --autogenerate -m "TEXT"`',
        "Write a migration for what has changed in the models",
    ),
    ("`uv run alembic downgrade -1`", "Undo the last migration"),
]
OWN_SETTINGS = {"test_isolation", "allow_hosts", "test_database"}


def settings_of_pytest() -> Iterator[tuple[str, ...]]:
    """Read the settings of the harness and the comments above them."""
    text = read(TEMPLATE / "pytest.toml")
    values = tomllib.loads(text)["pytest"]
    for comment, name in re.findall(r"((?:^#.*\n)+)^(\w+) = ", text, re.MULTILINE):
        if name in OWN_SETTINGS:
            words = " ".join(re.sub(r"^# ?", "", comment, flags=re.MULTILINE).split())
            yield code(name), code(str(values[name])), words


def options_of_update() -> Iterator[tuple[str, ...]]:
    """Read the options of scripts/update.py."""
    yield "`uv run scripts/update.py`", "Update to the newest release, lock, run all checks"
    for node in ast.walk(ast.parse(read(TEMPLATE / "scripts/update.py"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            words = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
            first = node.args[0]  # if there are several names, the long one is last
            names = ast.literal_eval(first.value if isinstance(first, ast.Starred) else first)
            option = names if isinstance(names, str) else names[-1]
            value = f" {words['metavar']}" if "metavar" in words else ""
            text = words["help"].replace("%%", "%")
            yield code(f"uv run scripts/update.py {option}{value}"), text[:1].upper() + text[1:]


# ---- Error messages ----

PARTS = {
    "A rolled-back test": ("harness/guard.py", "harness/transaction.py", "harness/isolation.py"),
    "Something is left behind": ("harness/leftovers.py", "harness/plugin.py"),
    "The network": ("harness/network.py",),
    "The test database": ("harness/databases.py", "harness/postgresql.py"),
}
UPDATE = "scripts/update.py"
# Pages that say more about messages that contain one of these texts.
SEE = {
    "while the test has uncommitted writes": "how-to/uncommitted-rows.md",
    "Two transactions overlap": "how-to/concurrency.md",
    "cannot reach other machines": "isolation.md#network-access",
    "extension": "how-to/postgresql-without-docker.md",
    "would be deleted": "how-to/delete-the-example.md",
    "conflict;": "how-to/update.md#resolve-a-conflict",
}


def errors() -> str:
    """Return the messages of the harness and of the update, which say what to do."""
    sections = []
    for title, modules in PARTS.items():
        found = [text for name in modules for text in messages_in(TEMPLATE / "tests" / name)]
        sections.append(f"## {title}\n\n" + "\n".join(map(item_of, found)))
    found = messages_in(TEMPLATE / UPDATE)
    sections.append("## An update\n\n" + "\n".join(map(item_of, found)))
    return """\
# Error messages

Messages of the template's own code, as they are printed. Each says what happened, and then what
to do. `…` stands for a name or a value.

For errors of other libraries, see ["attached to a different loop"](../how-to/different-loop.md)
and ["no such savepoint"](../how-to/no-such-savepoint.md).

""" + "\n\n".join(sections)


def item_of(message: str) -> str:
    """Return a message as a list item, with a link to the page that says more."""
    more = [page for text, page in SEE.items() if text in message]
    link = f" [More](../{more[0]})" if more else ""
    return f"- {markdown(message)}{link}"


def markdown(message: str) -> str:
    """Return a message with Markdown's special characters escaped."""
    parts = re.split(r"(`[^`]+`)", message)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts
    )


def messages_in(file: Path) -> list[str]:
    """Read the sentences in the constants, exceptions and yielded problems of a module."""
    constants = constants_in(TEMPLATE / "tests/harness/guard.py", {})  # other modules import them
    constants |= constants_in(file, constants)
    said = [
        " ".join(text.split())
        for text in texts_in(ast.parse(file.read_text(encoding="utf-8")), constants)
    ]
    return [
        text
        for text in dict.fromkeys(said)
        if len(text) > MIN_LENGTH and IS_MESSAGE.match(text) and not IS_NO_ERROR.search(text)
    ]


MIN_LENGTH = 45
IS_MESSAGE = re.compile(r"[A-Z`…].*[a-z`)][.:]")
# SQL, the end of other messages, and information.
IS_NO_ERROR = re.compile(r"^(SELECT|Mark the test)|no newer release|needs your attention|\.\.\.$")


def constants_in(file: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Return a module's constants that are text; `known` are those that it imports."""
    known = dict(known)
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = flat(node.value, known)
            if text is not None:
                known[node.targets[0].id] = text
    return known


def texts_in(node: ast.AST, constants: Mapping[str, str]) -> Iterator[str]:
    """Yield the texts in a piece of code, in order, each as a whole, without docstrings."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.expr) and (text := flat(node, constants)) is not None:
        yield text
        return
    for child in ast.iter_child_nodes(node):
        yield from texts_in(child, constants)


def flat(node: ast.expr, constants: Mapping[str, str]) -> str | None:
    """Return the text of an expression, with an ellipsis for values that are not constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{[^{}]*\}", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            (flat(part.value, constants) or "…")
            if isinstance(part, ast.FormattedValue)
            and isinstance(part.value, ast.Name)
            and part.value.id in constants
            else "…"
            if isinstance(part, ast.FormattedValue)
            else flat(part, constants) or ""
            for part in node.values
        )
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = flat(node.left, constants), flat(node.right, constants)
        return None if left is None and right is None else f"{left or '…'}{right or '…'}"
    return None


if __name__ == "__main__":
    main()
