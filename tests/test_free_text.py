"""Whatever people write is either refused with a clear message, or kept exactly in the files."""

import keyword
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.pairwise import choices
from tests.promises import (
    ANSWERS_FILE,
    CHECKS,
    DEFAULTS,
    Files,
    check,
    check_nothing_is_left,
    check_nothing_speaks_of_what_was_not_asked_for,
    check_with_ruff,
    read,
    write,
)
from tests.quickly import plain_copy, render_files
from tests.rendering import Answers, run

# ruff: noqa: RUF001 (this tests letters that look like others)
LONGEST = {"project_name": 40, "description": 200, "author_name": 100, "author_email": 254}
LINES = ["project_name", "description", "author_name"]  # any line of text will do

# ---- What people may write ----

# Texts with a meaning in Jinja, Python, YAML, TOML, Markdown, HTML or a shell.
ODD_WORDS = r"""
" ' \ ` ''' \" \' \n \u0041 \N{BULLET} { } {{ }} {% %} {# #} {{x}} {%raw%} ${{ }} # ## -
--- - : , . ? ! !! & * &a *a %d %s %(here)s $ ${HOME} $(id) `id` | > < << ~ @ = == + ++ _ __
_x_ *x* **x** ~~x~~ <b> </b> <!-- --> &amp; [x](y) [ ] ![x] ( ) ; && || /dev/null ../.. a: :a
null Null yes no on off true True None 1e3 0x1 0o7 1_000 3.10 .5 .inf 2026-11-21 12:30:45
!!str 1. 2) #a a# //x /*x*/ =1+1 -- \x00 \0 %00 &#0; f"{x}" r"\" b'' 🦊 👨‍👩‍👧 é e̊ № – — “x” ’ …
ﬀ ß İ ı Ǆ שלום مرحبا 日本語 한국어 Привет Ελλάδα ไทย हिन्दी 𝔘𝔫𝔦
"""
SPECIAL = [*ODD_WORDS.split(), '"""', "x\u00a0x", "x\u3000x"]
PLAIN = ["My", "The", "Ada's", "service", "café", "library", "2048", "of", "A-Z", "& Sons", "Inc."]
NAMES = [
    *keyword.kwlist, *sorted(sys.stdlib_module_names), "app", "tests", "fastapi", "mako",
    "postgres", "httpx2", "template1", "1e3", "0x1", "null", "yes", "none",
]  # fmt: skip
UNSEEN = "\n\r\t\0\x1b\x7f\x85\u2028\u202e\u2066\ufeff\ud800\u200b\u200f\u00ad\u2060"
PIECES = st.sampled_from(SPECIAL) | st.sampled_from(PLAIN)
SLUGS = st.from_regex(r"[a-z0-9]{1,9}(-[a-z0-9]{1,9}){0,3}", fullmatch=True)


def plausible(longest: int) -> st.SearchStrategy[str]:
    """Words, some of them odd."""
    words = st.lists(PIECES, min_size=1, max_size=8)
    lines = st.builds(lambda glue, words: glue.join(words), st.sampled_from([" ", ""]), words)
    return lines.map(lambda line: line[:longest].strip()) | st.sampled_from(NAMES)


def wild(longest: int) -> st.SearchStrategy[str]:
    """Text as somebody may paste it, or a program may generate it."""
    return st.one_of(
        st.text(),
        st.text(min_size=1).map(lambda text: (text * longest)[: longest + 1]),
        st.builds("{}{}{}".format, PIECES, st.sampled_from(UNSEEN), PIECES),
        st.sampled_from(["", " ", " x", "x\u00a0", "nobody", "a@b", "@", "x@y\n.z", "x" * 10_000]),
    )


@st.composite
def answer_sets(draw: st.DrawFn) -> dict[str, object]:
    """Answers to nearly all questions; one of them may be wild."""
    people = ["ada", "o'ada+x", "ada.b", "{{x}}", "#ada", "$(id)", "~", "*", "é", "1e3", "-"]
    domains = ["example.com", "exämple.com", "a.b.example", "日本.jp", "x_y.z"]
    answers: dict[str, object] = {
        **{name: draw(plausible(LONGEST[name])) for name in LINES},
        "author_email": f"{draw(st.sampled_from(people))}@{draw(st.sampled_from(domains))}",
        **{name: draw(st.sampled_from(offered)) for name, offered in choices().items()},
    }
    if draw(st.booleans()):
        answers["project_slug"] = draw(SLUGS | st.sampled_from(NAMES))
    if draw(st.booleans()):
        name = draw(st.sampled_from([*LONGEST, "project_slug"]))
        answers[name] = draw(wild(LONGEST.get(name, 50)))
    return answers


# ---- What must happen to it ----


class Trial:
    """Renders sets of answers, and counts the results."""

    def __init__(self, template: Path, directory: Path) -> None:
        self.template = template
        self.directory = directory
        self.rendered = 0
        self.refused = 0
        self.offered: set[tuple[str, str]] = set()

    def give(self, answers: Answers) -> Files | None:
        """Render; return the files, or None if the answers are refused. Check either result."""
        project = self.directory / "my-service"
        try:
            files = render_files(self.template, project, answers)
        except ValueError as refusal:
            assert not project.exists(), f"check_refusal: something was written: {answers}"
            self.offered.add(check_refusal(str(refusal), answers))
            self.refused += 1
            return None
        check_acceptance(answers)
        slug = yaml.safe_load(files[ANSWERS_FILE])["project_slug"]
        # These checks look for words, which people may have written.
        looking = {check_nothing_is_left, check_nothing_speaks_of_what_was_not_asked_for}
        checks = [each for each in CHECKS if each not in looking]
        check(files, {**DEFAULTS, "project_slug": slug, **answers}, checks)
        self.rendered += 1
        for_ruff = ("app/main.py", "pyproject.toml", "ruff.toml")
        write(
            {name: files[name] for name in for_ruff}, self.directory / f"for-ruff-{self.rendered}"
        )
        return files

    def end(self) -> None:
        """Run the checks that are too slow to run for each set."""
        check_with_ruff(self.directory)
        for name, value in self.offered:
            assert self.give({name: value}), f"check_refusal: {name}: {value} is refused itself"


def check_refusal(said: str, answers: Answers) -> tuple[str, str]:
    """Check that a refusal names the question, and suggests an answer; return both."""
    match = re.search(r"question '(\w+)': .*Try: (.+)$", said, re.MULTILINE)
    assert match, f"check_refusal: {said}"
    name, value = match.groups()
    assert name in answers, f"check_refusal: {name} was not answered: {answers}"
    text = str(answers[name])
    assert name not in LINES or not is_plain(text, LONGEST[name]), (
        f"check_refusal: {text!r}: {said}"
    )
    return name, value


def check_acceptance(answers: Answers) -> None:
    """Check that the accepted answers contain no surprises."""
    for name, longest in LONGEST.items():
        text = str(answers.get(name, DEFAULTS[name]))
        assert 0 < len(text) <= longest, f"check_acceptance: {name} has {len(text)} characters"
        assert text == text.strip(), f"check_acceptance: {name}: {text!r}"
        odd = {unicodedata.name(each, "?") for each in text if is_unseen(each)}
        assert not odd, f"check_acceptance: {name}: {text!r} has {odd}"
    email = str(answers.get("author_email", "x@y.z"))
    assert email.count("@") == 1, f"check_acceptance: author_email: {email}"


def is_plain(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and text == text.strip() and text.isprintable()


def is_unseen(character: str) -> bool:
    """Return whether a character is invisible, and does not join visible ones, as in emoji."""
    kind = unicodedata.category(character)
    return kind in {"Cc", "Cs", "Zl", "Zp"} or character in UNSEEN


@pytest.fixture
def trial(template: Path, tmp_path: Path) -> Trial:
    return Trial(plain_copy(template, tmp_path / "template"), tmp_path / "tried")


@pytest.mark.timeout(3600)
def test_any_text_is_refused_or_gets_through_unharmed(
    trial: Trial, record_property: Callable[[str, object], None]
) -> None:
    @given(answer_sets())
    def give(answers: dict[str, object]) -> None:
        trial.give(answers)

    give()
    rendered, refused = trial.rendered, trial.refused
    trial.end()
    assert rendered > 0.4 * (rendered + refused)
    assert refused > 0.1 * (rendered + refused)
    record_property(
        "tried",
        f"answer sets with odd texts: {rendered + refused}, of them refused: {refused}, "
        f"rendered: {rendered}, failures: 0",
    )


ODD_TEXTS = [
    "\"double\" and 'single'",
    "only 'single' ones",
    'one " more "double" than \'single\'',
    "back\\slash \\n \\u0041 \\",
    "{{ project_slug }} {% raw %} {# x #} }}",
    "${HOME} $(id) `id` %s %(here)s",
    "# no: heading [list](x) <b>&amp;</b>",
    "- 1. 'no' *list*",
    "12. no list either",
    "no __bold__ _words_",
    "yes",
    "null",
    "3.10",
    "!!tag &anchor @x | >",
    "שלום עולם",
    "Ada’s “Café” – now",
    "\N{FAMILY} \U0001f468\u200d\U0001f469\u200d\U0001f467 é e\u0301 日本",
    "~",
]


@pytest.mark.ci
def test_odd_texts_get_through_unharmed(trial: Trial) -> None:
    for text in ODD_TEXTS:
        answers = {"project_name": text, "description": text, "author_name": text}
        assert trial.give({**answers, "author_email": "o'ada+x@exämple.com"})
        assert trial.give({**answers, "database": "postgresql"})
    trial.end()


def test_the_command_line_reads_answers_as_text(trial: Trial, tmp_path: Path) -> None:
    answers = {
        "project_name": "yes", "description": "null", "author_name": "1e3 = {{ x }}: 'y'",
        "project_slug": "0x1",
    }  # fmt: skip
    data = [f"--data={name}={value}" for name, value in answers.items()]
    (tmp_path / "data.yml").write_text(yaml.safe_dump(answers), encoding="utf-8")
    for number, given_with in enumerate([data, [f"--data-file={tmp_path / 'data.yml'}"]]):
        directory = tmp_path / str(number)
        copy = (sys.executable, "-m", "copier", "copy", "--defaults", "--quiet", *given_with)
        done = run(*copy, trial.template, directory, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert read(directory) == trial.give(answers)
