"""Every fault that tests plant, however rarely, still matches the code that it breaks."""

from collections.abc import Callable
from pathlib import Path

from tests import test_core_faults, test_isolation, test_patterns
from tests.mutants import Mutant

MUTANTS = [
    *test_isolation.MUTANTS,
    *test_core_faults.MUTANTS,
    *(watched.mutant for watched in test_patterns.WATCHED),
]


def test_planted_faults_meet_the_code(rendered: Callable[..., Path]) -> None:
    projects = [rendered(), rendered(database="postgresql", http_client="httpx2")]

    def meets(mutant: Mutant) -> bool:
        files = (file for project in projects for file in project.glob(mutant.files))
        return any(mutant.text in file.read_text(encoding="utf-8") for file in files)

    assert [mutant.name for mutant in MUTANTS if not meets(mutant)] == []
