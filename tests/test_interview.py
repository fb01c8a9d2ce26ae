"""The interview: what a person at a terminal of 80 columns is asked, can answer, and is told."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interview import (
    ASKED,
    COPIER_YML,
    DOWN,
    EMPTIED,
    ENTER,
    UP,
    WIDTH,
    Interview,
    without_colours,
)
from tests.rendering import QUESTIONS, run
from tests.serving import free_port, is_listening, serving
from tests.sharing import shared


def commands_in(shown: str) -> list[str]:
    """Return the commands that the closing message shows."""
    lines = re.findall(r"^ {4}(\S.*)$", shown.split(" is ready. Next:\n")[1], re.MULTILINE)
    return [re.sub(r" +\(.*\)$", "", line) for line in lines]


@pytest.fixture
def interview(template: Path, tmp_path: Path) -> Callable[..., Interview]:
    def interview(*options: str, destination: str = "my-service") -> Interview:
        return Interview(template, destination, *options, cwd=tmp_path)

    return interview


def test_it_asks_in_order_and_takes_the_defaults_with_enter(
    interview: Callable[..., Interview],
) -> None:
    person = interview()
    person.answer_rest(ASKED)
    person.finish()
    defaults = {name: COPIER_YML[name]["default"] for name in QUESTIONS}
    assert person.answers() == {**defaults, "project_slug": "my-service"}


def test_who_wants_it_is_asked_the_other_questions(interview: Callable[..., Interview]) -> None:
    person = interview(*(f"--ask={name}" for name in QUESTIONS if name not in ASKED))
    person.answer("project_name", f"{EMPTIED}Lending{ENTER}")
    person.answer_rest(ASKED[1:])
    person.answer("project_slug")
    person.answer("python_version", DOWN + ENTER)
    person.answer("http_client", DOWN + ENTER)
    person.answer("docker", "n")
    person.finish()
    kept = person.answers()
    assert (kept["project_slug"], kept["python_version"]) == ("lending", "3.12")
    assert (kept["http_client"], kept["docker"]) == ("httpx2", False)


def test_choices_are_picked_with_the_arrow_keys(interview: Callable[..., Interview]) -> None:
    person = interview()
    person.answer_rest(ASKED[: ASKED.index("license")])
    person.answer("license", DOWN + DOWN + ENTER)
    person.answer("database", DOWN + ENTER)
    person.answer("example", "n")
    person.answer("ci", DOWN + DOWN + UP + ENTER)
    shown = person.finish()
    kept = person.answers()
    assert (kept["license"], kept["database"]) == ("BSD-3-Clause", "postgresql")
    assert (kept["example"], kept["ci"]) == (False, "gitlab")
    assert "\n    uv run poe database        (in a separate terminal)\n" in shown


# For each question, answers that are refused, each with the reason; and one that is taken.
REFUSED = {
    "project_name": ([("x" * 41, "Over 40 characters. Try: Tools")], "Lending"),
    "description": ([("x" * 201, "Over 200 characters. Try: A shop")], "Lends books"),
    "author_name": (
        [
            ("", "It is empty. Try: Ada"),
            ("Ada ", "Spaces around it. Try: Ada"),
            ("x" * 101, "Over 100 characters. Try: Ada"),
        ],
        "Grace Hopper",
    ),
    "author_email": (
        [
            ("nobody", "Not an address. Try: a@b.org"),
            ("x" * 255, "Over 254 characters. Try: a@b.org"),
        ],
        "grace@example.com",
    ),
    "project_slug": (
        [
            ("Lending", "Not a valid name. Try: my-tools"),
            ("fastapi", "It is taken. Try: my-tools"),
            ("x" * 51, "Over 50 characters. Try: my-tools"),
        ],
        "lending",
    ),
}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_bad_answers_are_refused_with_the_reason_and_asked_for_again(
    number: int, interview: Callable[..., Interview]
) -> None:
    """The terminal has one line for the reason, and shows it completely."""
    person = interview("--ask=project_slug")
    given = {}
    for name in [name for name in QUESTIONS if name in {*ASKED, "project_slug"}]:
        refused, good = REFUSED.get(name, ([], ""))
        if len(refused) <= number:
            person.answer(name)
            continue
        bad, sentence = refused[number]
        person.answer(name, EMPTIED + bad + ENTER)
        person.wait_for(f"'{name}': {sentence}")
        assert len(f"Validation error for question '{name}': {sentence}") < WIDTH
        person.child.send(EMPTIED + good + ENTER)
        given[name] = good
    person.finish()
    assert given
    assert given.items() <= person.answers().items()


def test_questions_and_closing_words_fit_the_terminal(interview: Callable[..., Interview]) -> None:
    person = interview(*(f"--ask={name}" for name in QUESTIONS if name not in ASKED))
    person.answer_rest(ASKED[: ASKED.index("database")])
    person.answer("database", DOWN + ENTER)
    person.answer_rest(QUESTIONS[ASKED.index("database") + 1 :])
    person.finish()
    # What is drawn again, from where the cursor moves to, is a line of its own.
    shown = re.sub(r"\r|\x1b\[\d*[ABD-H]", "\n", person.shown)
    lines = without_colours(shown).replace("🎤", "\n??").splitlines()  # both are two columns wide
    assert sum(line.startswith("??") for line in lines) >= len(QUESTIONS)
    assert not [line for line in lines if len(line) > WIDTH]


@pytest.mark.ci
def test_the_commands_to_type_next_work_as_they_are_shown(
    interview: Callable[..., Interview],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    person = interview(destination="it's my service")
    person.answer_rest(ASKED)
    shown = person.finish()
    enter, begin, test, serve = commands_in(shown)
    [address] = re.findall(r"Then open http://127\.0\.0\.1:(\d+)/docs", shown)
    for command in (enter, begin, test, serve):
        record_property("tried", f"shown after the interview, and run: {command}")

    shared.note_installed(person.project)
    tested = run("bash", "-c", f"set -e\n{enter}\npwd\n{begin}\n{test}", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    assert tested.stdout.startswith(f"{person.project}\n")
    assert re.search(r"\d+ passed", tested.stdout)
    assert (person.project / ".git").is_dir()

    taken = is_listening(int(address))
    port = free_port() if taken else int(address)
    env = {**os.environ, "PORT": str(port)} if taken else os.environ
    with serving(
        *("bash", "-c", f"set -e\n{enter}\n{serve}"),
        cwd=tmp_path, port=port, log=tmp_path / "log", env=env,
    ) as server:  # fmt: skip
        said = server.log.read_text(encoding="utf-8")
        assert f"http://127.0.0.1:{port}" in said
