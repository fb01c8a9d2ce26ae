"""The documentation site builds without warnings, its links work, and it is up to date."""

import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from tests.documents import pages
from tests.rendering import ROOT, run

CONFIGURATION = ROOT / "zensical.toml"
REWRITE = "Run: uv run python scripts/{}.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; the build fails if there is a warning."""
    directory = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ROOT / "docs", directory / "docs")
    shutil.copy(CONFIGURATION, directory)
    zensical = Path(sys.executable).with_name("zensical")
    done = run(zensical, "build", "--strict", cwd=directory, env={"NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout
    return directory / "site"


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id") or "")
        if tag == "a" and attributes.get("href"):
            self.links.append(str(attributes["href"]))
        if tag in {"script", "img", "link"}:
            source = attributes.get("src") or attributes.get("href")
            self.loaded += [str(source)] if source else []


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    read = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    assert len(read) > 40
    broken = []
    for file, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and target in read and parts.fragment not in read[target].anchors
            ):
                broken.append(f"{file.relative_to(site)}: {link}")
        broken += [
            f"{file.relative_to(site)}: {source}"
            for source in page.loaded
            if not urlsplit(source).netloc
            and not (file.parent / urlsplit(source).path).resolve().exists()
        ]
    assert broken == []


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for file in site.rglob("*.html"):
        loaded = [source for source in Page(file).loaded if urlsplit(source).netloc]
        assert loaded == [], file
    for picture in (ROOT / "docs").rglob("*.svg"):
        text = picture.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert "http" not in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL), picture


def names_in(navigation: object) -> Iterator[str]:
    """Yield the names of the pages in a part of the navigation."""
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, list):
        for each in navigation:
            yield from names_in(each)
    elif isinstance(navigation, dict):
        yield from names_in(list(navigation.values()))


def test_every_page_is_in_the_navigation() -> None:
    project = tomllib.loads(CONFIGURATION.read_text(encoding="utf-8"))["project"]
    named = list(names_in(project["nav"]))
    assert len(named) == len(set(named))
    assert set(named) == {
        page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")
    }


def test_every_decision_is_in_the_list() -> None:
    decisions = ROOT / "docs/decisions"
    listed = (decisions / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\d{4}-.+?\.md)\)", listed)) == {
        file.name for file in decisions.glob("0*.md")
    }


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", list(pages()))
def test_the_links_lead_somewhere_without_the_site_too(page: str) -> None:
    """They must also work on GitHub, and in an editor."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!https?:|<)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def script(name: str) -> ModuleType:
    """Import a script of this repository."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    written = {
        file.name: file.read_text(encoding="utf-8")
        for file in (ROOT / "docs/reference").glob("*.md")
        if file.name != "index.md"
    }
    assert script("reference").pages() == written, REWRITE.format("reference")


def test_the_diagrams_are_up_to_date() -> None:
    for name, picture in script("diagrams").pictures().items():
        drawn = (ROOT / "docs/images" / name).read_text(encoding="utf-8")
        assert drawn == picture, REWRITE.format("diagrams")
