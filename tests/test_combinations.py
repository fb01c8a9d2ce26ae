"""Every combination of choices renders what we promise: see tests/promises.py."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path

import pytest
from copier import run_recopy

from tests import promises
from tests.pairwise import all_sets, choices, pairs_covered, pairwise
from tests.promises import ANSWERS_FILE, DEFAULTS, check, check_with_ruff, read, write
from tests.quickly import hurried, plain_copy, render_files
from tests.rendering import Answers, render, run

Render = Callable[[Answers], dict[str, str]]

CHOICES = choices()
COMBINATIONS = all_sets(CHOICES)
# One test takes the combinations with the same first two answers.
PARTS = list(product(*list(CHOICES.values())[:2]))

SMALL: dict[str, list[object]] = {"one": [1, 2, 3], "two": [True, False], "three": ["a", "b"]}


@pytest.fixture(scope="session")
def plain_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_copy(template, tmp_path_factory.mktemp("plain") / "template")


@pytest.fixture
def files_of(plain_template: Path, tmp_path: Path) -> Render:
    """Renders a project with the given answers, and returns its files."""
    return lambda answers: render_files(plain_template, tmp_path / "my-service", answers)


# ---- All of them ----


def test_every_two_choices_render_what_they_promise(
    files_of: Render, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    sets = pairwise(CHOICES)
    check_combinations(sets, files_of, tmp_path)
    record_property("tried", f"answers in which each two choices meet, rendered: {len(sets)}")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=lambda part: "-".join(map(str, part)))
def test_every_combination_renders_what_it_promises(
    part: tuple[object, ...],
    files_of: Render,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    chosen = [answers for answers in COMBINATIONS if tuple(answers.values())[:2] == part]
    check_combinations(chosen, files_of, tmp_path)
    record_property("combinations", len(chosen))


def check_combinations(chosen: Sequence[Answers], files_of: Render, directory: Path) -> None:
    """Render these answers and check the files."""
    read_by_ruff = {}
    for answers in chosen:
        files = files_of(answers)
        check(files, {**DEFAULTS, **answers})
        python = {name: text for name, text in files.items() if name.endswith((".py", "ruff.toml"))}
        key = json.dumps([python, answers["python_version"]])
        read_by_ruff[key] = {**python, "pyproject.toml": files["pyproject.toml"]}

    for number, files in enumerate(read_by_ruff.values()):
        write(files, directory / f"project-{number}")
    check_with_ruff(directory)


def test_every_choice_has_words_to_be_found_by() -> None:
    for question, offered in CHOICES.items():
        for choice in offered:
            assert choice in (False, "none") or (question, choice) in promises.SPEAKS_OF


@pytest.mark.ci
def test_the_answers_render_the_same_project_again(files_of: Render, tmp_path: Path) -> None:
    for number, answers in enumerate(pairwise(CHOICES)):
        files = files_of(answers)
        project = tmp_path / f"again-{number}"
        write({ANSWERS_FILE: files[ANSWERS_FILE]}, project)
        with hurried():
            run_recopy(project, defaults=True, overwrite=True, quiet=True)
        assert read(project) == files


# ---- The defaults ----


def test_the_defaults_are_the_answers_that_they_were(
    plain_template: Path, tmp_path: Path, files_of: Render
) -> None:
    copy = (sys.executable, "-m", "copier", "copy", "--quiet")
    (tmp_path / "new").mkdir()
    done = run(*copy, "--defaults", plain_template, "my-service", cwd=tmp_path / "new")
    assert done.returncode == 0, done.stdout
    files = read(tmp_path / "new/my-service")
    assert files == files_of({})
    assert files == files_of(DEFAULTS)
    check(files, DEFAULTS)


def test_a_template_from_git_renders_the_same(
    template: Path, files_of: Render, tmp_path: Path
) -> None:
    """The shortcuts of the other tests only change what the answers say about the origin."""
    files, short = read(render(template, tmp_path / "from-git", {})), files_of({})
    for kept in (files, short):
        text = kept.pop(ANSWERS_FILE)
        kept["answers"] = re.sub(r"^_.*\n", "", text, flags=re.MULTILINE)
    assert files == short


# ---- Some of them ----


def test_few_sets_bring_every_two_choices_together() -> None:
    sets = pairwise(CHOICES)
    for one, other in combinations(CHOICES, 2):
        met = {(answers[one], answers[other]) for answers in sets}
        assert met == set(product(CHOICES[one], CHOICES[other]))
    most = sorted(map(len, CHOICES.values()))[-2:]
    assert len(sets) <= most[0] * most[1] + 1  # at least their product is necessary
    assert sets == pairwise(CHOICES)


def test_pairs_that_are_missing_are_counted() -> None:
    assert pairs_covered([], SMALL) == (0, 16)
    assert pairs_covered([{"one": 1, "two": True, "three": "a"}], SMALL) == (3, 16)


def test_sets_that_must_be_among_them_come_first() -> None:
    seeds = [{"two": False, "other": "kept"}, {}, {"one": 2, "two": False, "three": "b"}]
    sets = pairwise(SMALL, seeds)
    assert all(found.items() >= seed.items() for found, seed in zip(sets, seeds, strict=False))
    assert pairs_covered(sets, SMALL) == (16, 16)
