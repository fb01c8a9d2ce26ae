"""What the harness knows of other packages that they do not promise.

`tests/isolation/test_private.py` notices when it changes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from inspect import iscoroutine
from typing import Any

import pytest
import sqlalchemy

SQLALCHEMY = sqlalchemy.__path__[0]


def is_closing(task: asyncio.Task[Any]) -> bool:
    """Say whether a task closes a session, a connection or an abandoned generator.

    SQLAlchemy does so in tasks of its own, so that a cancellation does not stop it.
    """
    coroutine = task.get_coro()
    if iscoroutine(coroutine):
        return coroutine.cr_code.co_filename.startswith(SQLALCHEMY)
    return type(coroutine).__name__ == "async_generator_athrow"


def is_of_anyio(task: asyncio.Task[Any]) -> bool:
    """Say whether a task is what anyio's pytest plugin runs tests and fixtures in."""
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")


def fixture_definitions(item: pytest.Function) -> Mapping[str, Sequence[pytest.FixtureDef[Any]]]:
    """Return the fixtures that a test may ask for: for each name, the closest one last."""
    return item._fixtureinfo.name2fixturedefs
