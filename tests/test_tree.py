"""Which files there are, whose they are, and that they are tidy. tests/tree.txt has the promise."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.rendering import ROOT, commit_all, files_in

FILES = [
    (kind, name, only)
    for kind, name, *only in map(
        str.split, (ROOT / "tests/tree.txt").read_text(encoding="utf-8").splitlines()
    )
    if kind != "#"
]
COPIER_YML = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))

# One more of everything that leaves files out, or changes what is in them.
ANSWERS: dict[str, dict[str, object]] = {
    "default": {},
    "core": {"example": False},
    "bare": {"example": False, "docker": False, "ci": "none", "license": "Proprietary"},
    "postgresql": {"database": "postgresql", "license": "Apache-2.0"},
    "gitlab": {"database": "postgresql", "ci": "gitlab", "example": False, "docker": False},
    "httpx2": {"http_client": "httpx2", "python_version": "3.13", "license": "BSD-3-Clause"},
}


def promised(answers: dict[str, object]) -> list[str]:
    """Name the files that there should be."""
    wanted = {str(answers.get("ci", "github"))}
    wanted.update(name for name in ("docker", "example") if answers.get(name, True))
    return sorted(name for _, name, only in FILES if wanted.issuperset(only))


@pytest.fixture(params=ANSWERS)
def answers(request: pytest.FixtureRequest) -> dict[str, object]:
    return ANSWERS[request.param]


@pytest.fixture
def tree(answers: dict[str, object], rendered: Callable[..., Path]) -> Path:
    project = rendered(**answers)
    commit_all(project, "Start")
    return project


def texts(tree: Path) -> dict[str, str]:
    return {name: (tree / name).read_text(encoding="utf-8") for name in files_in(tree)}


def test_the_files_are_those_that_were_promised(tree: Path, answers: dict[str, object]) -> None:
    assert files_in(tree) == promised(answers)
    on_disk = [p.relative_to(tree) for p in tree.rglob("*") if p.is_file()]
    assert sorted(p.as_posix() for p in on_disk if p.parts[0] != ".git") == promised(answers)


def test_seams_are_kept_on_updates_and_starters_are_never_brought_back() -> None:
    seams = {f"/{name}" for kind, name, _ in FILES if kind == "seam"}
    assert set(COPIER_YML["_skip_if_exists"]) == seams
    rules = [rule for rule in COPIER_YML["_exclude"] if '_copier_operation == "update"' in rule]
    starters = " ".join(rules).split()
    for kind, name, _ in FILES:
        is_starter = any(f"/{name}/".startswith(f"{each}/") for each in starters)
        assert is_starter == (kind == "starter"), name


def test_all_files_are_tidy(tree: Path) -> None:
    for name, text in texts(tree).items():
        assert not re.search(r"[ \t]$", text, re.MULTILINE), f"{name}: blanks at the end of a line"
        assert "\t" not in text, f"{name}: tabs"
        assert "\r" not in text, f"{name}: line ends of Windows"
        assert not text or text[-1] == "\n", f"{name}: no line end at the end"
        assert not text.endswith("\n\n"), f"{name}: empty lines at the end"
        assert not text.startswith("\n"), f"{name}: an empty line at the start"
        assert name.endswith((".py", ".mako")) or "\n\n\n" not in text, f"{name}: two empty lines"
        assert len(name) < 80, f"{name}: too long for some systems"
        assert not re.search(r'[<>:"|?*\\{}%]', name), f"{name}: some systems take no such name"


def test_no_jinja_is_left(tree: Path) -> None:
    for name, text in texts(tree).items():
        assert not re.search(r"(?<!\$)\{\{|\{%|\{#", text), f"{name}: Jinja"


def test_what_tools_read_can_be_read(tree: Path) -> None:
    for name, text in texts(tree).items():
        if name.endswith(".toml"):
            tomllib.loads(text)
        elif name.endswith((".yaml", ".yml")):
            yaml.safe_load(text)


def test_without_the_example_nothing_speaks_of_it(rendered: Callable[..., Path]) -> None:
    tree = rendered(example=False)
    commit_all(tree, "Start")
    trace = re.compile(
        r"app[./](users|items)|/(users|items)\b|class (User|Item)\b"
        r"|\b(jwt|pyjwt|pwdlib|argon2|multipart|email.validator|access_token|password_hash)",
        re.IGNORECASE,
    )
    for name, text in texts(tree).items():
        assert not trace.search(name)
        assert not trace.search(text), f"{name}: {trace.search(text)}"


def test_the_readme_of_the_service_names_files_that_exist(tree: Path) -> None:
    readme = (tree / "README.md").read_text(encoding="utf-8")
    lines = readme.split("```text\n")[1].split("```")[0].splitlines()
    parent = ""
    for line in lines:
        names = re.findall(r"[\w./-]+", re.split(r"\s{2,}|\s(?=yours)", line.strip())[0])
        if not line.startswith(" "):
            parent = names[0] if len(names) == 1 and names[0].count("/") == 1 else ""
        for name in names:
            path = tree / (parent if line.startswith(" ") else "") / name
            assert path.exists(), f"{line!r}: no {path}"


def test_only_files_with_jinja_have_its_suffix() -> None:
    for file in (ROOT / "template").rglob("*.jinja"):
        assert re.search(r"\{\{|\{%", file.read_text(encoding="utf-8")), file


def test_no_name_holds_control_flow() -> None:
    names = [p.name for p in (ROOT / "template").rglob("*") if "{" in p.name]
    assert names == ["{{_copier_conf.answers_file}}.jinja"]


def test_the_workflows_ask_for_no_rights_and_keep_no_credentials(tree: Path) -> None:
    for file in [*tree.glob(".github/workflows/*"), *ROOT.glob(".github/workflows/*")]:
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 30
            for step in job["steps"]:
                if "uses" in step:
                    assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"])
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False
