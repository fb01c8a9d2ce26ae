"""Which answers are accepted, and how the files contain them."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.rendering import QUESTIONS, ROOT, render, run

ASKED = [
    *("project_name", "description", "author_name", "author_email"),
    *("license", "database", "example", "ci"),
]
NOT_ASKED = ["project_slug", "python_version", "http_client", "docker"]

COPIER_YML = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))


def test_the_questions_are_those_of_the_contract() -> None:
    assert [*ASKED, *NOT_ASKED] == QUESTIONS
    assert [name for name in QUESTIONS if COPIER_YML[name].get("ask", True)] == ASKED


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_a_help_a_default_and_limits(name: str) -> None:
    question = COPIER_YML[name]
    assert question["help"]
    assert "default" in question
    assert "validator" in question or "choices" in question


def test_nothing_in_the_template_asks_for_trust() -> None:
    assert not COPIER_YML.keys() & {"_tasks", "_migrations", "_jinja_extensions", "_external_data"}


def test_the_defaults_ask_nothing(template: Path, tmp_path: Path) -> None:
    copier = (sys.executable, "-m", "copier")
    done = run(*copier, "copy", "--defaults", template, tmp_path / "my-service", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "My Service is ready" in done.stdout
    assert "uv run pytest" in done.stdout
    assert (tmp_path / "my-service/app/main.py").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("project_name", "", "It is empty. Try: Tools"),
        ("project_name", "   ", "It is empty"),
        ("project_name", " x", "Spaces around it"),
        ("project_name", "x\u00a0", "Spaces around it"),
        ("project_name", "x\ny", "Hidden character"),
        ("project_name", "x\x00y", "Hidden character"),
        ("project_name", "x\u202ey", "Hidden character"),
        ("project_name", "x" * 41, "Over 40 characters. Try: Tools"),
        ("description", "x\x1b[31m", "Hidden character"),
        ("description", "x" * 201, "Over 200 characters"),
        ("author_name", "", "Try: Ada"),
        ("author_email", "nobody", "Not an address. Try: a@b.org"),
        ("author_email", "nobody@home", "Not an address"),
        ("author_email", "a@b@example.com", "Not an address"),
        ("author_email", "Ada <ada@example.com>", "Not an address"),
        ("license", "GPL-3.0", "'GPL-3.0' is not in ['MIT', 'Apache-2.0', 'BSD-3-Clause'"),
        ("database", "mysql", "'mysql' is not in ['sqlite', 'postgresql']"),
        ("example", "perhaps", "It is neither yes nor no"),
        ("ci", "jenkins", "'jenkins' is not in ['github', 'gitlab', 'none']"),
        ("project_slug", "My Service", "lowercase letters (a to z), digits, and single hyphens"),
        ("project_slug", "my-service\n", "lowercase letters (a to z), digits, and single hyphens"),
        ("project_slug", "x" * 51, "Over 50 characters"),
        ("project_slug", "fastapi", "It is taken. Try: my-tools"),
        ("project_slug", "postgres", "It is taken. Try: my-tools"),
        ("python_version", "3.10", "'3.10' is not in ['3.11', '3.12', '3.13']"),
        ("http_client", "requests", "'requests' is not in ['httpx', 'httpx2']"),
        ("docker", "podman", "It is neither yes nor no"),
    ],
)
def test_a_bad_answer_is_refused_before_anything_is_written(
    name: str, value: str, sentence: str, template: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"'{name}'") as refusal:
        render(template, tmp_path / "my-service", {name: value})
    assert sentence in str(refusal.value)
    assert not (tmp_path / "my-service").exists()


@pytest.mark.parametrize("answer", ["project_name=", "author_email=nobody", "python_version=3.9"])
def test_the_command_line_says_last_what_was_wrong(
    answer: str, template: Path, tmp_path: Path
) -> None:
    copier = (sys.executable, "-m", "copier")
    done = run(
        *copier, "copy", "--defaults", "-d", answer, template, tmp_path / "new", cwd=tmp_path
    )
    assert done.returncode == 1
    assert answer.partition("=")[0] in done.stdout.splitlines()[-1]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Service", "my-service"),
        ("  ".join("ABC"), "a-b-c"),
        ("Ada's Café №5", "adas-caf-5"),
        ("--x__y--", "x-y"),
        ("日本語", "my-service"),
        ("FastAPI", "fastapi-service"),
        ("2048", "2048"),
        ("İstanbul", "i-stanbul"),
        ("a" * 40, "a" * 40),
    ],
)
def test_the_slug_comes_from_any_name(name: str, slug: str, rendered: Callable[..., Path]) -> None:
    project = rendered(project_name=name)
    pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["name"] == slug
