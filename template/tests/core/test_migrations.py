"""The migrations, on a database of their own: each goes up, down and up again."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

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
    found = {
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
    connection.rollback()  # or Alembic would take part in this transaction
    return found


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

    async with engine.connect() as connection:
        await connection.run_sync(stairway)


async def test_models_and_migrations_agree(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(lambda connection: command.check(alembic_config(connection)))


REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "of_this_test", {head!r}


def upgrade() -> None:
    {upgrade}
"""
ALTER_PARENTS = """
    with op.batch_alter_table("parents") as table:
        table.alter_column("name", existing_type=sa.String(255), type_=sa.String(500))
"""
CREATE_INDEX = """
    with op.get_context().autocommit_block():
        op.create_index("ix_parents_name", "parents", ["name"], postgresql_concurrently=True)
"""
DELETE_PARENTS = """
    op.execute("DELETE FROM parents")
"""


@pytest.fixture
async def family(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection to a database with two tables, of which one refers to the other."""
    async with engine.connect() as connection:
        for statement in (
            "CREATE TABLE parents (id INTEGER PRIMARY KEY, name VARCHAR(255))",
            "CREATE TABLE children (id INTEGER PRIMARY KEY, "
            "parent_id INTEGER REFERENCES parents ON DELETE CASCADE)",
            "INSERT INTO parents VALUES (1, 'Ada')",
            "INSERT INTO children VALUES (2, 1)",
        ):
            await connection.execute(text(statement))
        await connection.commit()
        yield connection


def upgrade(connection: Connection, directory: Path, upgrade: str) -> None:
    """Run a revision that follows those of the project, with this body of `upgrade`."""
    script = ScriptDirectory.from_config(alembic_config())
    revision = REVISION.format(head=script.get_current_head(), upgrade=upgrade.strip())
    (directory / "of_this_test.py").write_text(revision, encoding="utf-8")
    config = alembic_config(connection)
    config.set_main_option("path_separator", "os")
    locations = [*(script.version_locations or [script.versions]), directory]
    config.set_main_option("version_locations", os.pathsep.join(map(str, locations)))
    command.upgrade(config, "head")


async def test_rows_survive_a_change_of_the_table_that_they_refer_to(
    family: AsyncConnection, tmp_path: Path
) -> None:
    await family.run_sync(upgrade, tmp_path, ALTER_PARENTS)
    assert await family.scalar(text("SELECT count(*) FROM children")) == 1


async def test_foreign_keys_are_enforced_again_after_a_migration(
    family: AsyncConnection, tmp_path: Path
) -> None:
    await family.run_sync(upgrade, tmp_path, ALTER_PARENTS)
    with pytest.raises(IntegrityError):
        await family.execute(text("INSERT INTO children VALUES (3, 99)"))


async def test_migration_that_breaks_a_foreign_key_is_undone(
    family: AsyncConnection, tmp_path: Path
) -> None:
    if family.dialect.name != "sqlite":
        pytest.skip("only SQLite has to ignore foreign keys during a migration")
    with pytest.raises(IntegrityError, match=r"children.*parents"):
        await family.run_sync(upgrade, tmp_path, DELETE_PARENTS)
    assert await family.scalar(text("SELECT count(*) FROM parents")) == 1


async def test_migration_can_leave_its_transaction(family: AsyncConnection, tmp_path: Path) -> None:
    await family.run_sync(upgrade, tmp_path, CREATE_INDEX)
    indexes = await family.run_sync(lambda connection: inspect(connection).get_indexes("parents"))
    assert [index["name"] for index in indexes] == ["ix_parents_name"]
