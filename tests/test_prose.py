"""Everything that people read is in plain English: check spelling, grammar and wordiness.

Harper checks spelling and grammar, proselint wordiness. `tests/words.txt` lists the words that
Harper does not know.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import pages
from tests.rendering import ROOT, render, run

TOOLS = Path(sys.executable).parent
WORDS = ROOT / "tests/words.txt"
# Rules of style that we do not follow, and rules that mistake code or tables for prose.
HARPER_IGNORES = [
    "CompoundNouns",
    "Dashes",
    "DiscourseMarkers",
    "DisjointPrefixes",
    "ExpandControl",
    "ExpandDirectory",
    "ExpandParameter",
    "ExpandStandardInputAndOutput",
    "MassNouns",
    "MissingDeterminer",
    "MissingPreposition",
    "MissingTo",
    "NumericRangeEnDash",
    "OrthographicConsistency",
    "OxfordComma",
    "PhrasalVerbAsCompoundNoun",
    "SentenceCapitalization",
    "Spaces",
    "SplitWords",
    "UseEllipsisCharacter",
    "UseTitleCase",
]
PROSELINT_IGNORES = re.compile(r"typography\.|lexical_illusions|dates_times")
# Phrases that nobody would say, and what to say instead; CONTRIBUTING.md has more.
PHRASES = {
    r"in an? order of chance": "in random order",
    r"belongs? into": "belongs in",
    r"what takes a person": "what needs your attention",
    r"whose each is": "who owns each",
    r"in order to": "to",
    r"is able to": "can",
    r"prior to": "before",
    r"(a|an?) (large )?number of": "many, or how many",
    r"utili[sz]e": "use",
    r"the fact that": "that",
    r"please": "(nothing)",
}
MODULES = sorted(
    module.relative_to(ROOT).as_posix()
    for pattern in ("template/app/**/*.py", "template/scripts/*.py", "scripts/*.py")
    for module in ROOT.glob(pattern)
)
HARNESS = sorted(
    module.relative_to(ROOT).as_posix() for module in ROOT.glob("template/tests/harness/*.py")
)


def harper(files: list[Path], *ignored: str) -> list[str]:
    """Return what Harper finds in Markdown, or in the docstrings and comments of Python."""
    options = ["--format=json", "--quiet", "--dialect=uk", f"--user-dict-path={WORDS}"]
    for rule in [*HARPER_IGNORES, *ignored]:
        options += ["--ignore", rule]
    found = run(TOOLS / "harper", "--no-color", "lint", *options, *files, cwd=ROOT).stdout
    reports = json.loads(found[found.index("[") : found.rindex("]") + 1])
    return [
        f"{report['file']}:{lint['line']}: {lint['matched_text']!r}: {lint['message']}"
        for report in reports
        for lint in report["lints"]
    ]


def proselint(files: list[Path]) -> list[str]:
    """Return what proselint finds."""
    found = run(TOOLS / "proselint", "check", *files, cwd=ROOT).stdout
    lines = re.findall(r"^\S+:\d+:\d+: .*$", found, re.MULTILINE)
    return [line for line in lines if not PROSELINT_IGNORES.search(line)]


def phrases(text: str) -> Iterator[str]:
    """Yield the phrases that nobody would say."""
    for phrase, better in PHRASES.items():
        for found in re.findall(rf"\b{phrase}\b", text, re.IGNORECASE):
            yield f"{found!r}: say {better!r}"


@pytest.fixture(scope="module")
def documents(template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pages of this repository, and the README of a project."""
    # Generated from docstrings and messages, which are checked in their sources.
    generated = {f"docs/reference/{name}.md" for name in ("errors", "files")}
    project = render(template, tmp_path_factory.mktemp("prose") / "p", {"database": "postgresql"})
    return [*(ROOT / page for page in pages() if page not in generated), project / "README.md"]


def test_the_documents_have_no_mistakes(documents: list[Path]) -> None:
    assert harper(documents) == []
    assert proselint(documents) == []


def test_docstrings_and_comments_have_no_mistakes() -> None:
    modules = [ROOT / name for name in [*MODULES, *HARNESS]]
    assert harper(modules, "SpellCheck", "AnA", "AWhile") == []


def test_nothing_is_said_that_nobody_would_say(documents: list[Path]) -> None:
    for document in documents:
        text = document.read_text(encoding="utf-8")
        if document.name == "CONTRIBUTING.md":  # it shows some
            text = text.split("| instead of")[0]
        assert list(phrases(text)) == [], document
    for name in [*MODULES, *HARNESS]:
        assert list(phrases((ROOT / name).read_text(encoding="utf-8"))) == [], name


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("The command recieves a file.", "recieves"),
        ("An informations is stored.", "informations"),
        ("It needs a engine.", "a"),
        ("The the engine is shared.", "The the"),
        ("It could of been committed.", "could of"),
    ],
)
def test_mistake_is_found(text: str, sign: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"{text}\n", encoding="utf-8")
    [found] = harper([file])
    assert sign in found


def test_wordiness_is_found(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("At this point in time, it is very unique.\n", encoding="utf-8")
    assert len(proselint([file])) > 1
    assert list(phrases("In order to start, utilize it.")) != []


def test_every_word_is_needed(documents: list[Path]) -> None:
    words = WORDS.read_text(encoding="utf-8").split()
    assert words == sorted(set(words), key=str.lower)
    text = "\n".join(document.read_text(encoding="utf-8") for document in documents)
    assert [word for word in words if word not in text] == []
