from collections.abc import Sequence
from typing import Optional

from fastapi import APIRouter, HTTPException, Query

from app.core.database import SessionDep
from app.core.schemas import ResourceId
from app.orders import service
from app.orders.models import Order, OrderStatus
from app.orders.schemas import OrderCreate, OrderRead, OrderStatusUpdate

router = APIRouter(prefix="/orders", tags=["orders"])


@router.post("", status_code=201, response_model=OrderRead, responses={400: {"description": "Not JSON"}})
async def create_order(data: OrderCreate, session: SessionDep) -> Order:
    return await service.create_order(session, data)


@router.get("", response_model=list[OrderRead])
async def list_orders(
    session: SessionDep,
    status: Optional[OrderStatus] = None,
    limit: int = Query(50, ge=1, le=100),
    offset: int = Query(0, ge=0, le=1_000_000),
) -> Sequence[Order]:
    return await service.list_orders(session, status, limit, offset)


@router.get("/{order_id}", response_model=OrderRead, responses={404: {"description": "Order not found"}})
async def read_order(order_id: ResourceId, session: SessionDep) -> Order:
    order = await service.get_order(session, order_id)
    if order is None:
        raise HTTPException(status_code=404, detail="Order not found")
    return order


@router.patch(
    "/{order_id}/status",
    response_model=OrderRead,
    responses={
        400: {"description": "Not JSON"},
        404: {"description": "Order not found"},
        409: {"description": "The status cannot change like that"},
    },
)
async def change_status(order_id: ResourceId, data: OrderStatusUpdate, session: SessionDep) -> Order:
    order = await service.get_order(session, order_id, lock=True)
    if not order:
        raise HTTPException(status_code=404, detail="Order not found")
    try:
        return await service.change_status(session, order, data.status)
    except service.InvalidTransition as e:
        raise HTTPException(status_code=409, detail=str(e))


@router.delete("/{order_id}", status_code=204, responses={404: {"description": "Order not found"}})
async def delete_order(order_id: ResourceId, session: SessionDep) -> None:
    order = await service.get_order(session, order_id)
    if order is None:
        raise HTTPException(status_code=404, detail="Order not found")
    await service.delete_order(session, order)
