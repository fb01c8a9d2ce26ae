"""Compare the responses that clients rely on with the accepted ones.

`uv run pytest --snapshot-update` accepts a change, and the review shows the difference.
"""

from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension
from syrupy.matchers import path_type

from tests.http_client import AsyncClient


@pytest.fixture
def snapshot_json(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    """Snapshots as JSON, one file each."""
    return snapshot.use_extension(JSONSnapshotExtension)


async def test_item_body(owner_client: AsyncClient, snapshot_json: SnapshotAssertion) -> None:
    new = {"title": "Lamp", "description": "green", "price": "9.50", "tags": [{"name": "old"}]}
    response = await owner_client.post("/items", json=new)
    moving_parts: dict[str, tuple[type[Any], ...]] = {
        "id": (int,),
        "owner_id": (int,),
        "created_at": (str,),
    }
    assert response.json() == snapshot_json(matcher=path_type(moving_parts))


async def test_error_body(owner_client: AsyncClient, snapshot_json: SnapshotAssertion) -> None:
    owner_client.headers["X-Request-ID"] = "the-same"
    response = await owner_client.post("/items", json={"title": ""})
    assert response.json() == snapshot_json
