"""A few sets of answers in which every two choices of different questions meet.

A fault that needs certain answers nearly always needs at most two, so these sets find nearly all
faults that all combinations would find.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from random import Random

import yaml

from tests.rendering import ROOT, Answers

# A choice is a question and an answer to it; a pair is two of them.
Pair = tuple[tuple[str, object], tuple[str, object]]


def choices() -> dict[str, list[object]]:
    """Return the choices that copier.yml offers, by question, without the free texts."""
    found: dict[str, list[object]] = {}
    for name, question in yaml.safe_load((ROOT / "copier.yml").read_text("utf-8")).items():
        if name.startswith("_"):
            continue
        if question.get("type") == "bool":
            found[name] = [True, False]
        elif "choices" in question:
            offered = question["choices"]
            found[name] = list(offered.values() if isinstance(offered, dict) else offered)
    return found


def all_sets(choices: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Return every combination of the choices."""
    return [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]


def pairs_in(answers: Answers) -> set[Pair]:
    """Return the pairs of choices that meet in `answers`."""
    return set(combinations(sorted(answers.items()), 2))


def all_pairs(choices: Mapping[str, Sequence[object]]) -> set[Pair]:
    """Return all pairs of choices."""
    return {
        ((one, this), (other, that))
        for one, other in combinations(sorted(choices), 2)
        for this, that in product(choices[one], choices[other])
    }


def pairs_covered(
    sets: Iterable[Answers], choices: Mapping[str, Sequence[object]]
) -> tuple[int, int]:
    """Return how many pairs meet in one of `sets`, and how many exist."""
    possible = all_pairs(choices)
    met = set().union(*map(pairs_in, sets))
    return len(possible & met), len(possible)


def pairwise(
    choices: Mapping[str, Sequence[object]], seeds: Sequence[Answers] = ()
) -> list[dict[str, object]]:
    """Return a few sets that cover all pairs: first the completed `seeds`, then more.

    A seed may leave out questions, and may answer others; those answers are kept.
    The same arguments give the same sets.
    """
    attempts = (_greedy(choices, seeds, Random(attempt)) for attempt in range(10))
    return min(attempts, key=len)


def _greedy(
    choices: Mapping[str, Sequence[object]], seeds: Sequence[Answers], chance: Random
) -> list[dict[str, object]]:
    """Take the set with the most new pairs, until none are missing; `chance` breaks ties.

    Pairs of questions with many choices need many sets to meet, so they weigh more.
    """
    candidates = all_sets(choices)
    chance.shuffle(candidates)
    pairs = [pairs_in(candidate) for candidate in candidates]
    missing = all_pairs(choices)
    weight = {pair: len(choices[pair[0][0]]) * len(choices[pair[1][0]]) for pair in missing}
    taken: list[dict[str, object]] = []
    while missing or len(taken) < len(seeds):
        seed = seeds[len(taken)] if len(taken) < len(seeds) else {}
        wanted = {(name, answer) for name, answer in seed.items() if name in choices}
        fitting = [i for i, candidate in enumerate(candidates) if candidate.items() >= wanted]
        assert fitting, f"copier.yml offers no such choices: {seed}"
        best = max(fitting, key=lambda index: sum(map(weight.__getitem__, pairs[index] & missing)))
        taken.append({**seed, **candidates[best]})
        missing -= pairs[best]
    return taken
