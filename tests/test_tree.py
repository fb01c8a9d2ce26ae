"""Who owns which file, and the rules for the template's files. tests/promises.py has the rest."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.promises import FILES
from tests.rendering import ROOT, run

COPIER_YML = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))

TOOLS = Path(sys.executable).parent
ZIZMOR = (TOOLS / "zizmor", "--offline", "--persona=pedantic")


def test_seams_are_kept_on_updates_and_starters_are_never_brought_back() -> None:
    seams = {f"/{name}" for kind, name, _ in FILES if kind == "seam"}
    assert set(COPIER_YML["_skip_if_exists"]) == seams
    rules = [rule for rule in COPIER_YML["_exclude"] if '_copier_operation == "update"' in rule]
    starters = " ".join(rules).split()
    for kind, name, _ in FILES:
        is_starter = any(f"/{name}/".startswith(f"{each}/") for each in starters)
        assert is_starter == (kind == "starter"), name


def test_the_readme_names_each_page_of_the_documentation(rendered: Callable[..., Path]) -> None:
    project = rendered()
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(.+\.md)` \|", readme, re.MULTILINE)) == {
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"
    }
    # This file says where they are.
    assert "_src_path" in yaml.safe_load((project / ".copier-answers.yml").read_text())


def test_only_files_with_jinja_have_its_suffix() -> None:
    for file in (ROOT / "template").rglob("*.jinja"):
        assert re.search(r"\{\{|\{%", file.read_text(encoding="utf-8")), file


def test_no_name_holds_control_flow() -> None:
    names = [p.name for p in (ROOT / "template").rglob("*") if "{" in p.name]
    assert names == ["{{_copier_conf.answers_file}}.jinja"]


def test_the_workflows_ask_for_no_rights_and_keep_no_credentials(
    rendered: Callable[..., Path],
) -> None:
    ours = list(ROOT.glob(".github/workflows/*"))
    for file in [*rendered().glob(".github/workflows/*"), *ours]:
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= (300 if file in ours else 30)
            for step in job["steps"]:
                if "uses" in step:
                    assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"])
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("docker", [True, False])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_the_linters_of_ci_find_nothing(
    ci: str, database: str, docker: bool, rendered: Callable[..., Path]
) -> None:
    project = rendered(ci=ci, database=database, docker=docker)
    if ci == "github":
        check(*ZIZMOR, ".", cwd=project)
        check_schema("dependabot", project / ".github/dependabot.yml")
    else:
        check_schema("gitlab-ci", project / ".gitlab-ci.yml")
        check_schema("renovate", project / "renovate.json")


def test_zizmor_finds_nothing_in_the_workflows_of_the_template() -> None:
    check(*ZIZMOR, ".github/workflows", cwd=ROOT)


@pytest.mark.parametrize("docker", [True, False])
@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_ci_checks_audits_and_builds_the_image(
    ci: str, docker: bool, rendered: Callable[..., Path]
) -> None:
    project = rendered(ci=ci, docker=docker)
    name = ".github/workflows/ci.yml" if ci == "github" else ".gitlab-ci.yml"
    text = (project / name).read_text(encoding="utf-8")
    assert "uv run poe check" in text
    assert "uv run --only-dev poe audit" in text
    assert ("docker build --pull ." in text) is docker
    if ci == "github":
        updates = yaml.safe_load((project / ".github/dependabot.yml").read_text())["updates"]
        kinds = ["uv", "github-actions", *(["docker"] if docker else [])]
        assert [each["package-ecosystem"] for each in updates] == kinds


def check(*command: str | Path, cwd: Path) -> None:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout


def check_schema(name: str, file: Path) -> None:
    check(TOOLS / "check-jsonschema", f"--builtin-schema=vendor.{name}", file, cwd=file.parent)
