"""Compare the OpenAPI document, which clients are generated from, with the accepted one."""

from fastapi import FastAPI
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

CHANGED = "The OpenAPI document has changed. If you want that: uv run pytest --snapshot-update"


async def test_openapi_document(app: FastAPI, snapshot: SnapshotAssertion) -> None:
    document = {name: part for name, part in app.openapi().items() if name != "info"}
    assert document == snapshot.use_extension(JSONSnapshotExtension), CHANGED
