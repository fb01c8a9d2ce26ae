"""Whether the database has the migrations that this code was written for."""

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
    """The revisions in `migrations/`, and the newest of them."""

    known: frozenset[str]
    heads: frozenset[str]


@cache
def read_revisions() -> Revisions:
    """Read the revisions once for this process; there are none where the code comes without."""
    try:
        script = ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml"))
    except CommandError as error:
        logger.warning("Whether the database is migrated, nobody can tell: %s", error)
        return Revisions(frozenset(), frozenset())
    known = frozenset(revision.revision for revision in script.walk_revisions())
    return Revisions(known, frozenset(script.get_heads(consider_depends_on=True)))


def is_behind(connection: Connection, revisions: Revisions) -> bool:
    """Say whether the database lacks one of `revisions`.

    One that has a revision which this code does not know is ahead of it: a deployment has migrated
    it, and has not replaced this process yet.
    """
    options = migration_options()
    name = options.get("version_table", "alembic_version")
    schema = options.get("version_table_schema")
    current: set[str] = set()
    if inspect(connection).has_table(name, schema):
        versions = table(name, column("version_num"), schema=schema)
        current.update(connection.scalars(select(versions.c.version_num)))
    return current <= revisions.known and not revisions.heads <= current
