"""Pairs of tests: a culprit, and the next test, which must not notice.

Copied into a rendered project as tests/neighbours.
"""

import pytest

pytest.register_assert_rewrite("tests.neighbours.pairs")
