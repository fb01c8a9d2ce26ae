"""Dependencies of the items' endpoints."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from fastapi import Depends, Header, WebSocket, WebSocketException, status
from fastapi.requests import HTTPConnection
from fastapi.security.utils import get_authorization_scheme_param
from pydantic.json_schema import SkipJsonSchema

from app.core.database import SessionDep, SessionFactoryDep, begin_reading
from app.core.dependencies import SettingsDep
from app.core.schemas import ResourceId
from app.items.feed import Feed, TooManyStreamsError, find_last_event_id
from app.items.models import Item
from app.items.schemas import EventId, ItemEventRead
from app.items.service import get_item
from app.users.dependencies import (
    CurrentUser,
    InvalidTokenError,
    get_access_token,
    get_current_user,
)
from app.users.models import User
from app.users.security import AccessToken


async def get_owned_item(item_id: ResourceId, session: SessionDep, user: CurrentUser) -> Item:
    """Return the user's item. Raises ItemNotFoundError, even for the items of other users."""
    return await get_item(session, user, item_id)


async def get_locked_item(item_id: ResourceId, session: SessionDep, user: CurrentUser) -> Item:
    """Return the user's item, locked for this request. Raises ItemNotFoundError."""
    return await get_item(session, user, item_id, lock=True)


OwnedItem = Annotated[Item, Depends(get_owned_item)]
LockedItem = Annotated[Item, Depends(get_locked_item)]


async def get_feed(connection: HTTPConnection) -> Feed:
    """Return the feed that the lifespan opened."""
    feed: Feed = connection.state.feed
    return feed


FeedDep = Annotated[Feed, Depends(get_feed)]


async def get_position(
    user: CurrentUser,
    session: SessionDep,
    last_event_id: Annotated[EventId | SkipJsonSchema[None], Header()] = None,
    follow: bool = True,
) -> int:
    """Return the id of the event after which a stream begins.

    This is the last one that the client has seen. If it names none, it is the newest one, or 0 if
    the client does not follow.
    """
    newest = await find_last_event_id(session, user.id)
    if last_event_id is not None:  # it may come from another database
        return min(last_event_id, newest)
    return newest if follow else 0


Position = Annotated[int, Depends(get_position)]
Events = AsyncGenerator[ItemEventRead]


async def follow_own_items(
    user: CurrentUser, feed: FeedDep, position: Position, follow: bool = True
) -> AsyncIterator[Events]:
    """Yield the events of the user's items until the response is sent.

    Raises TooManyStreamsError.
    """
    async with feed.follow(user.id, position) as events:
        yield events if follow else feed.events(user.id, position)


EventsDep = Annotated[Events, Depends(follow_own_items)]


async def get_socket_token(websocket: WebSocket, settings: SettingsDep) -> AccessToken:
    """Return the content of the WebSocket's access token. Raises WebSocketException 1008.

    The token is in the header `Authorization: Bearer TOKEN`. Browsers cannot set this header, but
    can offer subprotocols: `new WebSocket(url, ["bearer", TOKEN])`. A token in the URL would
    end up in logs.
    """
    scheme, token = get_authorization_scheme_param(websocket.headers.get("authorization"))
    if not token and len(offered := websocket.scope.get("subprotocols", ())) == 2:
        scheme, token = (subprotocol.strip() for subprotocol in offered)
    if scheme.lower() != "bearer":
        token = ""
    try:
        return await get_access_token(token, settings)
    except InvalidTokenError as error:
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, error.detail) from error


SocketToken = Annotated[AccessToken, Depends(get_socket_token)]


async def get_socket_user(access_token: SocketToken, factory: SessionFactoryDep) -> User:
    """Return the user of the WebSocket's access token. Raises WebSocketException 1008."""
    try:
        async with factory() as session:  # closed before the socket opens, perhaps for hours
            await begin_reading(session)
            return await get_current_user(access_token, session)
    except InvalidTokenError as error:
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, error.detail) from error


SocketUser = Annotated[User, Depends(get_socket_user)]


async def follow_by_socket(
    user: SocketUser, feed: FeedDep, factory: SessionFactoryDep
) -> AsyncIterator[Events]:
    """Yield the events of the user's items while the WebSocket is open.

    Raises WebSocketException 1013 if too many are open.
    """
    async with factory() as session:
        await begin_reading(session)
        newest = await find_last_event_id(session, user.id)
    try:
        async with feed.follow(user.id, newest) as events:
            yield events
    except TooManyStreamsError as error:
        raise WebSocketException(status.WS_1013_TRY_AGAIN_LATER, error.title) from error


SocketEvents = Annotated[Events, Depends(follow_by_socket)]
