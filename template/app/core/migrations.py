"""Check whether the database has this code's migrations."""

import logging
from functools import cache
from typing import NamedTuple

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, column, inspect, select, table

from app.core.config import ROOT
from app.database import migration_options

logger = logging.getLogger(__name__)


class Revisions(NamedTuple):
    """All revisions in `migrations/`, and the newest ones."""

    known: frozenset[str]
    heads: frozenset[str]


@cache
def read_revisions() -> Revisions:
    """Read the revisions once per process. Without `migrations/`, there are none."""
    try:
        script = ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml"))
    except CommandError as error:
        logger.warning("Cannot tell whether the database is migrated: %s", error)
        return Revisions(frozenset(), frozenset())
    known = frozenset(revision.revision for revision in script.walk_revisions())
    return Revisions(known, frozenset(script.get_heads(consider_depends_on=True)))


def is_behind(connection: Connection, revisions: Revisions) -> bool:
    """Return whether the database lacks a migration.

    If it has a revision that this code does not know, it is ahead: a deployment has migrated it,
    but has not yet replaced this process.
    """
    options = migration_options()
    name = options.get("version_table", "alembic_version")
    schema = options.get("version_table_schema")
    current: set[str] = set()
    if inspect(connection).has_table(name, schema):
        versions = table(name, column("version_num"), schema=schema)
        current.update(connection.scalars(select(versions.c.version_num)))
    return current <= revisions.known and not revisions.heads <= current
