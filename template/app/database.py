"""How the service uses its database, where that differs from app/core/database.py."""

from typing import Any

# For create_async_engine, in tests and migrations too: {"json_serializer": ...}, for example. The
# size of the pool is a setting. What your settings decide, build_app takes as `engine_options`.
ENGINE_OPTIONS: dict[str, Any] = {}

# For the MetaData of all models. Where migrations have run under other names of constraints,
# say which: {"naming_convention": {}} are those that the database itself gives.
METADATA_OPTIONS: dict[str, Any] = {}

# The column of a Python type, where a model does not say it. A datetime is aware, unless you say
# {datetime: DateTime()}.
TYPE_ANNOTATION_MAP: dict[Any, Any] = {}


def migration_options() -> dict[str, Any]:
    """Return what Alembic's context.configure gets, such as `include_object` or `version_table`."""
    return {}
