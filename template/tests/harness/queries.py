"""What the application asks the database, statement by statement."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event

# Where a transaction begins and ends depends on how the test is isolated.
TRANSACTION_CONTROL = re.compile(r"\s*(BEGIN|COMMIT|SAVEPOINT|RELEASE|ROLLBACK)\b", re.I)


@contextmanager
def recorded_queries() -> Iterator[list[str]]:
    """Give the list of the application's SQL statements, which grows as they are executed.

    What runs in the task of the caller is left out: the test's own statements, and what the
    harness does between requests.
    """
    statements: list[str] = []
    own_task = asyncio.current_task()

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if asyncio.current_task() is not own_task and not TRANSACTION_CONTROL.match(statement):
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", record)
