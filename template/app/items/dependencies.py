"""What the items' endpoints have in common."""

from typing import Annotated

from fastapi import Depends, HTTPException, WebSocket, WebSocketException, status
from fastapi.requests import HTTPConnection
from fastapi.security.utils import get_authorization_scheme_param

from app.core.database import SessionDep, SessionFactoryDep
from app.core.dependencies import SettingsDep
from app.core.schemas import ResourceId
from app.items.feed import Feed
from app.items.models import Item
from app.items.service import get_item
from app.users.dependencies import CurrentUser, get_access_token, get_current_user
from app.users.models import User


async def get_owned_item(item_id: ResourceId, session: SessionDep, user: CurrentUser) -> Item:
    """Return the user's item. Raises ItemNotFoundError, also for the items of others."""
    return await get_item(session, user, item_id)


async def get_locked_item(item_id: ResourceId, session: SessionDep, user: CurrentUser) -> Item:
    """Return the user's item, for this request alone to change. Raises ItemNotFoundError."""
    return await get_item(session, user, item_id, lock=True)


OwnedItem = Annotated[Item, Depends(get_owned_item)]
LockedItem = Annotated[Item, Depends(get_locked_item)]


async def get_feed(connection: HTTPConnection) -> Feed:
    """Return the feed that the lifespan opened."""
    feed: Feed = connection.state.feed
    return feed


FeedDep = Annotated[Feed, Depends(get_feed)]


async def get_socket_user(
    websocket: WebSocket, factory: SessionFactoryDep, settings: SettingsDep
) -> User:
    """Return the user whose token came with the WebSocket. Raises WebSocketException 1008.

    The token is in the header `Authorization: Bearer TOKEN`. A browser cannot set that one, but
    can offer subprotocols: `new WebSocket(url, ["bearer", TOKEN])`. A token in the URL would
    end up in logs.
    """
    scheme, token = get_authorization_scheme_param(websocket.headers.get("authorization"))
    if not token and len(offered := websocket.scope.get("subprotocols", ())) == 2:
        scheme, token = (subprotocol.strip() for subprotocol in offered)
    if scheme.lower() != "bearer":
        token = ""
    try:
        access_token = await get_access_token(token, settings)
        async with factory() as session:  # closed before the socket opens, which may be for hours
            return await get_current_user(access_token, session)
    except HTTPException as error:
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, error.detail) from error


SocketUser = Annotated[User, Depends(get_socket_user)]
