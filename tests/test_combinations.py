"""Every combination of the choices renders what it promises."""

from itertools import combinations, product

from tests.pairwise import choices, pairs_covered, pairwise

CHOICES = choices()
SMALL: dict[str, list[object]] = {"one": [1, 2, 3], "two": [True, False], "three": ["a", "b"]}


def test_few_sets_bring_every_two_choices_together() -> None:
    sets = pairwise(CHOICES)
    for one, other in combinations(CHOICES, 2):
        met = {(answers[one], answers[other]) for answers in sets}
        assert met == set(product(CHOICES[one], CHOICES[other]))
    most = sorted(map(len, CHOICES.values()))[-2:]
    assert len(sets) <= most[0] * most[1] + 1  # fewer than their product are not possible
    assert sets == pairwise(CHOICES)


def test_pairs_that_are_missing_are_counted() -> None:
    assert pairs_covered([], SMALL) == (0, 16)
    assert pairs_covered([{"one": 1, "two": True, "three": "a"}], SMALL) == (3, 16)


def test_sets_that_must_be_among_them_come_first() -> None:
    seeds = [{"two": False, "other": "kept"}, {}, {"one": 2, "two": False, "three": "b"}]
    sets = pairwise(SMALL, seeds)
    assert all(found.items() >= seed.items() for found, seed in zip(sets, seeds, strict=False))
    assert pairs_covered(sets, SMALL) == (16, 16)
