"""Pairs of tests: a culprit, and the next test, which must not notice it.

Copied into a rendered project as tests/neighbours.
"""

import pytest

pytest.register_assert_rewrite("tests.neighbours.pairs")
