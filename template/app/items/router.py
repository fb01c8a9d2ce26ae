"""The items' endpoints: create, list, follow, read, change, delete."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from anyio import create_task_group
from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect, status
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.core.database import SessionDep
from app.core.pages import Page
from app.core.problems import responses_of
from app.items import service
from app.items.dependencies import (
    EventsDep,
    FeedDep,
    LockedItem,
    OwnedItem,
    SocketEvents,
    SocketToken,
)
from app.items.feed import TooManyStreamsError, events_until
from app.items.models import Item
from app.items.schemas import (
    ItemCreate,
    ItemPage,
    ItemQuery,
    ItemRead,
    ItemUpdate,
)
from app.items.service import ItemNotFoundError
from app.users.dependencies import AccessTokenDep, CurrentUser

router = APIRouter(prefix="/items", tags=["items"])
NOT_FOUND = responses_of(ItemNotFoundError)


@router.post("", status_code=status.HTTP_201_CREATED, response_model=ItemRead)
async def create_item(
    data: ItemCreate, session: SessionDep, user: CurrentUser, feed: FeedDep
) -> Item:
    """Create an item."""
    return await service.create_item(session, feed, user, data)


@router.get("", response_model=ItemPage)
async def list_items(
    query: Annotated[ItemQuery, Query()], session: SessionDep, user: CurrentUser
) -> Page[Item]:
    """List your items by page: all, or those with a status or up to a price."""
    return await service.list_items(session, user, query)


@router.get(
    "/feed", response_class=EventSourceResponse, responses=responses_of(TooManyStreamsError)
)
async def stream_items(
    access_token: AccessTokenDep, events: EventsDep
) -> AsyncIterator[ServerSentEvent]:
    """Follow what happens to your items, as server-sent events, until the token expires.

    `Last-Event-ID`, which browsers send when they connect again, starts with what they missed.
    `follow=false` sends the stored events and ends.
    """
    async for event in events_until(access_token.expires_at, events):
        yield ServerSentEvent(id=str(event.id), event=event.kind, data=event.item)


@router.websocket("/feed")
async def follow_items(
    websocket: WebSocket, access_token: SocketToken, events: SocketEvents
) -> None:
    """Follow what happens to your items.

    Closes with 1008 when the token expires.
    """
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(subprotocol="bearer" if "bearer" in offered else None)
    async with create_task_group() as tasks:

        async def leave_with_client() -> None:
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(leave_with_client)
        with suppress(WebSocketDisconnect):
            async for event in events_until(access_token.expires_at, events):
                await websocket.send_text(event.model_dump_json())
            await websocket.close(status.WS_1008_POLICY_VIOLATION)
        tasks.cancel_scope.cancel()


# After /items/feed, which would otherwise match as an item's id.
@router.get("/{item_id}", response_model=ItemRead, responses=NOT_FOUND)
async def read_item(item: OwnedItem) -> Item:
    """Read one of your items."""
    return item


@router.patch("/{item_id}", response_model=ItemRead, responses=NOT_FOUND)
async def change_item(
    data: ItemUpdate, item: LockedItem, session: SessionDep, feed: FeedDep
) -> Item:
    """Change one of your items."""
    return await service.change_item(session, feed, item, data)


@router.delete("/{item_id}", status_code=status.HTTP_204_NO_CONTENT, responses=NOT_FOUND)
async def delete_item(item: LockedItem, session: SessionDep, feed: FeedDep) -> None:
    """Delete one of your items."""
    await service.delete_item(session, feed, item)
