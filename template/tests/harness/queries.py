"""The SQL statements of the application."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Engine

from tests.harness.guard import listening

# How transactions begin and end depends on the isolation of the test.
TRANSACTION_CONTROL = re.compile(r"\s*(BEGIN|COMMIT|SAVEPOINT|RELEASE|ROLLBACK)\b", re.I)


@pytest.fixture
async def queries(anyio_backend: str) -> AsyncIterator[list[str]]:
    """The SQL statements that the application has executed; `queries.clear()` empties the list.

    It leaves out statements of the test itself, and of the harness between requests.
    """
    statements: list[str] = []
    own_task = asyncio.current_task()

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if asyncio.current_task() is not own_task and not TRANSACTION_CONTROL.match(statement):
            statements.append(statement)

    with listening(Engine, {"before_cursor_execute": record}):
        yield statements
