"""Rows survive the migrations."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from app.items.models import Item, ItemStatus
from app.users.models import User
from tests.harness.databases import ROOT
from tests.harness.isolation import OwnDatabase

# Rows as the first release stored them, in SQL, because its models are gone.
STORED_AT_0001 = [
    "INSERT INTO users (id, email, password_hash, created_at) "
    "VALUES (1, 'ada@example.com', 'hash', '2026-01-31 12:00:00+00:00')",
    "INSERT INTO items (id, owner_id, title, description, price, status, created_at) "
    "VALUES (2, 1, 'Lamp', NULL, 9.50, 'sold', '2026-02-28 12:00:00+00:00')",
]


@pytest.mark.committed
async def test_items_of_the_first_release_survive_the_upgrade(isolation: OwnDatabase) -> None:
    def go_to(revision: str, move: Callable[[Config, str], None]) -> Callable[[Connection], None]:
        def run(connection: Connection) -> None:
            config = Config(toml_file=ROOT / "pyproject.toml")
            config.attributes["connection"] = connection
            move(config, revision)

        return run

    async with isolation.engine.connect() as connection:
        await connection.run_sync(go_to("0001", command.downgrade))
        for statement in STORED_AT_0001:
            await connection.execute(text(statement))
        await connection.commit()
        await connection.run_sync(go_to("head", command.upgrade))
    async with isolation.session() as session:
        item = await session.get_one(Item, 2)
        owner = await session.get_one(User, item.owner_id)
    assert (item.title, item.price, item.status) == ("Lamp", Decimal("9.50"), ItemStatus.SOLD)
    assert owner.email == "ada@example.com"
