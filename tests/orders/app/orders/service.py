from collections.abc import Sequence
from typing import Optional

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.orders.models import Order, OrderLine, OrderStatus
from app.orders.schemas import OrderCreate

ALLOWED = {
    OrderStatus.pending: [OrderStatus.paid, OrderStatus.cancelled],
    OrderStatus.paid: [OrderStatus.shipped, OrderStatus.cancelled],
    OrderStatus.shipped: [],
    OrderStatus.cancelled: [],
}


class InvalidTransition(Exception):
    pass


async def create_order(session: AsyncSession, data: OrderCreate) -> Order:
    order = Order(customer=data.customer)
    for line in data.lines:
        order.lines.append(OrderLine(**line.model_dump()))
    session.add(order)
    await session.commit()
    return order


async def list_orders(
    session: AsyncSession, status: Optional[OrderStatus], limit: int, offset: int
) -> Sequence[Order]:
    query = select(Order).options(selectinload(Order.lines)).order_by(Order.id)
    if status is not None:
        query = query.where(Order.status == status)
    result = await session.execute(query.limit(limit).offset(offset))
    return result.scalars().all()


async def get_order(session: AsyncSession, order_id: int, lock: bool = False) -> Optional[Order]:
    query = select(Order).where(Order.id == order_id).options(selectinload(Order.lines))
    if lock:
        query = query.with_for_update()
    result = await session.execute(query)
    return result.scalar_one_or_none()


async def change_status(session: AsyncSession, order: Order, status: OrderStatus) -> Order:
    if status not in ALLOWED[order.status]:
        raise InvalidTransition(f"Order is {order.status.value}, it cannot become {status.value}")
    order.status = status
    await session.commit()
    return order


async def delete_order(session: AsyncSession, order: Order) -> None:
    await session.delete(order)
    await session.commit()
