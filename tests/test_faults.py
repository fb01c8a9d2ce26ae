"""Faults planted in the template: tests/promises.py and tests/test_free_text.py catch each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mutants import Mutant, plant
from tests.promises import DEFAULTS, check, check_with_ruff, write
from tests.quickly import plain_copy, render_files
from tests.test_free_text import Trial

# A few combinations to render instead of all.
COMBINATIONS: list[dict[str, object]] = [
    {},
    {
        "license": "Proprietary", "database": "postgresql", "example": False, "ci": "none",
        "python_version": "3.13", "http_client": "httpx2", "docker": False,
    },
    {"license": "Apache-2.0", "database": "postgresql", "ci": "gitlab", "http_client": "httpx2"},
    {"license": "BSD-3-Clause", "example": False, "ci": "gitlab", "python_version": "3.12"},
]  # fmt: skip
TEXTS: list[dict[str, object]] = [
    {"project_name": '"It\'s" \\ {{ fine }}', "description": "'#: \\ \"", "author_name": "& _x_"},
    {"project_name": "yes", "project_slug": "0x1", "database": "postgresql"},
    {"project_name": "Two\nlines"},
    {"project_slug": "null\n"},
    {"author_email": "ada@example"},
]


class Fault(NamedTuple):
    """A text in a file of the template, what replaces it, and the check that must notice.

    If the text is empty, the file is new.
    """

    name: str
    check: str
    file: str
    text: str
    replacement: str


FAULTS = [
    Fault(
        "comma lost after a dependency", "check_syntax", "template/pyproject.toml.jinja",
        '"aiosqlite>=0.22.1",', '"aiosqlite>=0.22.1"',
    ),
    Fault(
        "description in naked quotes", "check_syntax", "template/pyproject.toml.jinja",
        "{{ quoted(description) }}", '"{{ description }}"',
    ),
    Fault(
        "database without quotes in compose", "check_texts", "template/compose.yaml.jinja",
        "POSTGRES_DB: {{ quoted(project_slug) }}", "POSTGRES_DB: {{ project_slug }}",
    ),
    Fault(
        "title not escaped", "check_syntax", "macros.jinja",
        'value.replace("\\\\", "\\\\\\\\")', "value",
    ),
    Fault(
        "title in other quotes than the formatter's", "check_with_ruff", "macros.jinja",
        """value.count('"') > value.count("'")""", "true",
    ),
    Fault(
        "Markdown not escaped", "check_texts", "template/README.md.jinja",
        "# {{ markdown(project_name) }}", "# {{ project_name }}",
    ),
    Fault(
        "line breaks accepted", "check_acceptance", "macros.jinja",
        "[\\\\x00-\\\\x1f", "[\\\\x00-\\\\x09\\\\x0b-\\\\x1f",
    ),
    Fault(
        "refusal without a good answer", "check_refusal", "macros.jinja",
        "Not an address. Try: {{ example }}", "Not an address.",
    ),
    Fault(
        "file left by a merge", "check_nothing_is_left", "template/app/main.py.rej", "",
        "@@ -1 +1 @@\n",
    ),
    Fault(
        "Jinja in a file without its suffix", "check_nothing_is_left", "template/mypy.ini",
        "strict = true", "strict = {{ strict }}",
    ),
    Fault(
        "empty line where a dependency is left out", "check_tidiness",
        "template/pyproject.toml.jinja", "{%- else %}\n    \"asyncpg", "{% else %}\n    \"asyncpg",
    ),
    Fault(
        "blank at the end of a line", "check_tidiness", "template/.gitlab-ci.yml.jinja",
        "interruptible: true", "interruptible: true ",
    ),
    Fault(
        "Dockerfile without Docker", "check_tree", "copier.yml", "    /Dockerfile\n", "",
    ),
    Fault(
        "dependency of the example without it", "check_dependencies",
        "template/pyproject.toml.jinja",
        '    "stamina>=26.1",\n{%- endif %}', '{%- endif %}\n    "stamina>=26.1",',
    ),
    Fault(
        "setting of the example without it",
        "check_nothing_speaks_of_what_was_not_asked_for", "template/.env.example.jinja",
        "LOG_LEVEL=INFO\n", "LOG_LEVEL=INFO\n# SMTP_HOST=smtp.example.com\n",
    ),
    Fault(
        "GitLab in GitHub's workflow",
        "check_nothing_speaks_of_what_was_not_asked_for", "template/.github/workflows/ci.yml.jinja",
        "name: CI\n", "name: CI # as in GitLab\n",
    ),
    Fault(
        "other database in the README",
        "check_nothing_speaks_of_what_was_not_asked_for", "template/README.md.jinja",
        "The tests create their own SQLite files.", "The tests create SQLite or PostgreSQL data.",
    ),
    Fault(
        "one default for another", "check_answers", "copier.yml",
        "  default: MIT\n", "  default: Apache-2.0\n",
    ),
    Fault(
        "answer that is not kept", "check_answers",
        "template/{{_copier_conf.answers_file}}.jinja",
        "_copier_answers, ", "_copier_answers, ci='github', ",
    ),
    Fault(
        "licence with a sentence of another", "check_licence", "licenses/BSD-3-Clause.txt",
        "THIS SOFTWARE IS", "Permission is hereby granted, free of charge.\n\nTHIS SOFTWARE IS",
    ),
    Fault(
        "other Python in the container than in CI", "check_python_version",
        "template/Dockerfile.jinja", "FROM python:{{ CURRENT }}-slim-trixie\n",
        "FROM python:3.12-slim-trixie\n",
    ),
    Fault(
        "path that is too long", "check_names", f"template/tests/core/{'long_' * 20}name.py", "",
        '"""Nothing."""\n',
    ),
    Fault(
        "name that Windows reserves", "check_names", "template/app/aux.py", "", '"""Nothing."""\n',
    ),
    Fault(
        "file that nobody promised", "check_tree", "template/app/extra.py", "", '"""Nothing."""\n',
    ),
    Fault(
        "test that the README names, but is not there", "check_readme", "template/README.md.jinja",
        "test_livez_answers", "test_livez_says",
    ),
]  # fmt: skip


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    return plain_copy(template, tmp_path / "template")


def try_out(template: Path, directory: Path) -> None:
    """Render a few combinations and texts, with the checks that other tests run on all."""
    for number, answers in enumerate(COMBINATIONS):
        files = render_files(template, directory / "my-service", answers)
        check(files, {**DEFAULTS, **answers})
        write(files, directory / f"project-{number}")
    check_with_ruff(directory)
    trial = Trial(template, directory / "trial")
    for answers in TEXTS:
        trial.give(answers)
    trial.end()


def test_without_a_fault_nothing_is_found(copy: Path, tmp_path: Path) -> None:
    try_out(copy, tmp_path / "tried")


@pytest.mark.ci
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_of_the_template_is_caught(
    fault: Fault, copy: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if fault.text:
        plant(Mutant(fault.name, fault.file, fault.text, fault.replacement), copy)
    else:
        (copy / fault.file).write_text(fault.replacement, encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        try_out(copy, tmp_path / "tried")
    assert str(caught.value).startswith(f"{fault.check}: "), caught.value
    record_property("mutant", f"template: {fault.name}: {fault.check}")
