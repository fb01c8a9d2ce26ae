"""Guess from its text what a statement may do.

A wrong guess never leaks rows: at worst, a test waits, fails, or gets a new connection.
"""

import re
from functools import lru_cache
from typing import NamedTuple

COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.S)
READS = {"SELECT", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN"}
ROWS = {"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "COPY", "TRUNCATE", "LOCK"}
TRANSACTIONS = {"BEGIN", "START", "COMMIT", "END", "ABORT", "ROLLBACK", "SAVEPOINT", "RELEASE"}
SESSION = {"SET", "RESET", "PREPARE", "EXECUTE", "DEALLOCATE", "LISTEN", "UNLISTEN", "DISCARD"}
SESSION |= {"DECLARE", "FETCH", "CLOSE", "LOAD", "PRAGMA", "ATTACH", "DETACH", "NOTIFY"}
# A SELECT may also write, lock rows, or change its session.
WRITES = re.compile(
    r"\b(INSERT|UPDATE|DELETE|MERGE|SHARE|INTO|nextval)\b|set_config|advisory", re.I
)
SETTINGS = re.compile(r"\bset_config\b", re.I)
FOR_SESSION = re.compile(r"set_config|advisory_(un)?lock", re.I)
OF_A_TRANSACTION = {"LOCAL", "CONSTRAINTS", "TRANSACTION"}
LONGEST_KEPT = 2000
"""The longest statement, in characters, whose effect is cached."""


class Effect(NamedTuple):
    """What a statement may do."""

    has_to_be_undone: bool
    """It writes, or takes a lock or a savepoint."""
    writes: bool
    begins_transaction: bool
    ends_transaction: bool
    changes_settings: bool
    changes_session: bool
    """It changes the connection in a way that a rollback does not undo."""
    changes_schema: bool


def effect_of(statement: str) -> Effect:
    """Return what the SQL `statement` may do."""
    if len(statement) > LONGEST_KEPT:
        return analyse.__wrapped__(statement)
    return analyse(statement)


@lru_cache(maxsize=1024)
def analyse(statement: str) -> Effect:
    """Parse `statement`."""
    bare = COMMENTS.sub(" ", statement)
    words = bare.lstrip(" \n\t(").split(None, 2)
    first, second = [*(word.strip("(;").upper() for word in words[:2]), "", ""][:2]
    sets = first in {"SET", "RESET"} or bool(SETTINGS.search(bare))
    is_for_session = first in SESSION and not (first == "SET" and second in OF_A_TRANSACTION)
    return Effect(
        has_to_be_undone=first not in READS or bool(WRITES.search(bare)),
        writes=first not in READS | TRANSACTIONS | SESSION or bool(WRITES.search(bare)),
        begins_transaction=first in {"BEGIN", "START"},
        ends_transaction=first in {"COMMIT", "END", "ABORT"}
        or (first == "ROLLBACK" and second != "TO"),
        changes_settings=sets,
        changes_session=is_for_session or bool(FOR_SESSION.search(bare)),
        changes_schema=first not in READS | ROWS | TRANSACTIONS | SESSION,
    )
