"""The migrations, on a database of their own: each goes up, down and up again."""

from collections.abc import AsyncIterator

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness.databases import ROOT, Databases


@pytest.fixture
async def engine(databases: Databases) -> AsyncIterator[AsyncEngine]:
    """The engine on a database that is at head, and this test's alone."""
    async with databases.copy() as engine:
        yield engine


def alembic_config(connection: Connection | None = None) -> Config:
    return Config(toml_file=ROOT / "pyproject.toml", attributes={"connection": connection})


def revisions() -> list[str]:
    """The revisions of the project, oldest first."""
    script = ScriptDirectory.from_config(alembic_config())
    return [revision.revision for revision in script.walk_revisions()][::-1]


def describe(connection: Connection) -> dict[str, list[str]]:
    """Say of each table which columns, keys and indexes it has, but for Alembic's own."""
    inspector = inspect(connection)
    return {
        table: sorted(
            str(part)
            for get_parts in (
                inspector.get_columns,
                inspector.get_foreign_keys,
                inspector.get_indexes,
                inspector.get_unique_constraints,
            )
            for part in get_parts(table)
        )
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


async def test_there_is_one_newest_revision() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) <= 1


async def test_each_revision_goes_up_down_and_up_again(engine: AsyncEngine) -> None:
    def stairway(connection: Connection) -> None:
        config = alembic_config(connection)
        at_head = describe(connection)
        command.downgrade(config, "base")
        assert describe(connection) == {}
        for revision in revisions():
            before = describe(connection)
            command.upgrade(config, revision)
            command.downgrade(config, "-1")
            assert describe(connection) == before, revision
            command.upgrade(config, revision)
        assert describe(connection) == at_head

    async with engine.begin() as connection:
        await connection.run_sync(stairway)


async def test_models_and_migrations_agree(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(lambda connection: command.check(alembic_config(connection)))
