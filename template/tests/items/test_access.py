"""Access control: every operation of the API, called by every kind of caller."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from app.items.models import Item
from app.settings import Settings
from app.users.models import User
from app.users.security import ALGORITHM, TOKEN_TYPE, create_access_token
from tests.conftest import MakeClient
from tests.http_client import AsyncClient, WebSocketDisconnect, connect_websocket
from tests.items.factories import ItemFactory
from tests.users.factories import PASSWORD, UserFactory


class Answers(NamedTuple):
    """The status codes that an operation answers; 101 and 1008 are for a WebSocket."""

    owner: int
    stranger: int
    others: int
    """Callers without a token, or with an invalid one."""


# If you add an operation to one of these routers, add a line here. The last one deletes the item.
TABLE = {
    "GET /livez": Answers(200, 200, 200),
    "GET /readyz": Answers(200, 200, 200),
    "POST /users": Answers(201, 201, 201),
    "POST /token": Answers(200, 200, 200),
    "GET /users/me": Answers(200, 200, 401),
    "POST /items": Answers(201, 201, 401),
    "GET /items": Answers(200, 200, 401),
    "GET /items/feed": Answers(200, 200, 401),
    "WebSocket /items/feed": Answers(101, 101, 1008),
    "GET /items/{item_id}": Answers(200, 404, 401),
    "PATCH /items/{item_id}": Answers(200, 404, 401),
    "DELETE /items/{item_id}": Answers(204, 404, 401),
}
TAGS = {"health", "users", "items"}
REQUESTS: dict[str, dict[str, Any]] = {
    "POST /users": {"json": {"email": "new@example.com", "password": PASSWORD}},
    "POST /token": {"data": {"username": "owner@example.com", "password": PASSWORD}},
    "POST /items": {"json": {"title": "Desk"}},
    "GET /items/feed": {"params": {"follow": False}},
    "PATCH /items/{item_id}": {"json": {"description": "Mine"}},
}
INVALID: dict[str, dict[str, Any]] = {
    "expired": {"claims": {"exp": datetime.now(UTC) - timedelta(seconds=1)}},
    "not yet": {"claims": {"iat": datetime.now(UTC) + timedelta(hours=1)}},
    "other audience": {"claims": {"aud": "another service"}},
    "other issuer": {"claims": {"iss": "another service"}},
    "other purpose": {"headers": {"typ": "confirmation+jwt"}},
    "other key": {"key": "another-key-that-is-long-enough-to-sign"},
    "alg: none": {"key": None, "algorithm": "none"},
}
OTHERS = ["nobody", *INVALID, "tampered", "deleted user", "no token"]


@pytest.fixture
async def item(owner: User, item_factory: type[ItemFactory]) -> Item:
    """The owner's item."""
    return await item_factory.create_async(owner_id=owner.id, title="The owner's lamp")


@pytest.fixture
async def owner(user_factory: type[UserFactory]) -> User:
    """The user with the address in REQUESTS."""
    return await user_factory.create_async(email="owner@example.com")


@pytest.fixture
async def tokens(
    owner: User, user_factory: type[UserFactory], db_session: AsyncSession, settings: Settings
) -> dict[str, str]:
    """A token for each caller; each invalid one differs from the owner's in one point."""
    stranger = await user_factory.create_async()
    deleted = await user_factory.create_async()
    token = create_access_token(owner.id, settings)
    claims = jwt.decode(token, options={"verify_signature": False})
    header, _, signature = token.split(".")
    strangers = create_access_token(stranger.id, settings)
    tokens = {
        "owner": token,
        "stranger": strangers,
        "deleted user": create_access_token(deleted.id, settings),
        "tampered": f"{header}.{strangers.split('.')[1]}.{signature}",
        "no token": "no token",
    }
    for caller, changes in INVALID.items():
        tokens[caller] = jwt.encode(
            {**claims, **changes.get("claims", {})},
            changes.get("key", settings.secret_key.get_secret_value()),
            changes.get("algorithm", ALGORITHM),
            headers={"typ": TOKEN_TYPE, **changes.get("headers", {})},
        )
    await db_session.delete(deleted)
    await db_session.commit()
    return tokens


async def call(client: AsyncClient, operation: str, item: Item) -> int:
    """Call an operation; return the status code that it answers or closes with."""
    method, path = operation.format(item_id=item.id).split()
    if method == "WebSocket":
        try:
            async with connect_websocket(client, path):
                return 101
        except WebSocketDisconnect as closed:
            return closed.code
    response = await client.request(method, path, **REQUESTS.get(operation, {}))
    if response.status_code == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert item.title not in response.text
    return response.status_code


async def test_table_has_every_operation(app: FastAPI) -> None:
    operations = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if TAGS.intersection(operation.get("tags", ()))
    }
    assert {operation for operation in TABLE if "WebSocket" not in operation} == operations


@pytest.mark.parametrize("caller", ["owner", "stranger", *OTHERS])
async def test_each_operation_lets_in_whom_it_should(
    make_client: MakeClient, tokens: dict[str, str], item: Item, caller: str
) -> None:
    headers = {"Authorization": f"Bearer {tokens[caller]}"} if caller in tokens else {}
    client = await make_client(headers=headers)
    answers = {operation: await call(client, operation, item) for operation in TABLE}
    column = caller if caller in {"owner", "stranger"} else "others"
    assert answers == {operation: getattr(row, column) for operation, row in TABLE.items()}


async def test_lists_have_one_s_own_items_only(
    make_client: MakeClient, tokens: dict[str, str], item: Item
) -> None:
    titles = {}
    for caller in ("owner", "stranger"):
        client = await make_client(headers={"Authorization": f"Bearer {tokens[caller]}"})
        page = (await client.get("/items")).json()
        titles[caller] = [each["title"] for each in page["items"]]
    assert titles == {"owner": [item.title], "stranger": []}
