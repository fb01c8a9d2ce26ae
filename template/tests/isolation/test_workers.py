"""The workers of one run share a server, and nothing else."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness import postgresql, sqlite
from tests.harness.databases import Databases
from tests.harness.plugin import open_databases
from tests.harness.postgresql import PostgresDatabases


@pytest.mark.timeout(10)
async def test_a_worker_does_not_wait_for_the_end_of_another(
    databases: Databases, db_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(databases, PostgresDatabases):
        server = databases.admin.engine.url.render_as_string(hide_password=False)
        monkeypatch.setenv("TEST_DATABASE_URL", server)
    for module in (sqlite, postgresql):
        monkeypatch.setattr(module, "WORKER", "another")
    async with open_databases("sqlite") as of_another, of_another.shared() as engine:
        assert engine.url != db_engine.url
    async with databases.copy() as engine:  # the other worker did not take it down
        assert engine.url != db_engine.url
