"""Your changes to how app/core/database.py uses the database."""

from typing import Any

# For create_async_engine, also in tests and migrations: {"json_serializer": ...}, for example. The
# pool size is a setting. Pass options that depend on settings to build_app, as `engine_options`.
ENGINE_OPTIONS: dict[str, Any] = {}

# For the MetaData of all models. If your migrations named constraints differently, set how:
# {"naming_convention": {}} lets the database name them.
METADATA_OPTIONS: dict[str, Any] = {}

# The column types of Python types, for columns whose model names none. A datetime is aware, unless
# you write {datetime: DateTime()}.
TYPE_ANNOTATION_MAP: dict[Any, Any] = {}


def migration_options() -> dict[str, Any]:
    """Return options for Alembic's context.configure, such as {"version_table": "revisions"}."""
    return {}
