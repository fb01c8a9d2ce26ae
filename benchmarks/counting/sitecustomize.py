"""Write a line for each statement that is sent to the database, to COUNT_ROUND_TRIPS.

Python imports this module when it starts, if it is on the path: see service.py.
"""

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

LOG = Path(os.environ["COUNT_ROUND_TRIPS"])


def note(statement: str) -> None:
    """Write a line."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"{' '.join(statement.split())[:80]}\n")


@event.listens_for(Pool, "connect")
def listen(connection: Any, _: object) -> None:
    """Let the driver tell of its statements, BEGIN and COMMIT included."""
    driver = connection.driver_connection
    if hasattr(driver, "add_query_logger"):  # asyncpg
        driver.add_query_logger(lambda record: note(record.query))
    else:  # aiosqlite
        await_only(driver.set_trace_callback(note))


@event.listens_for(Engine, "before_cursor_execute")
def note_prepared(connection: Connection, cursor: object, statement: str, *_: object) -> None:
    """Write what asyncpg does not tell of: it prepares statements once, and then runs them."""
    if connection.dialect.driver == "asyncpg":
        note(statement)
