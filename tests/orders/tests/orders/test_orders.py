import asyncio
import random
from decimal import Decimal

import pytest
from sqlalchemy import func, select

from app.orders.models import Order, OrderLine, OrderStatus

PAYLOAD = {
    "customer": "Ada",
    "lines": [
        {"product": "Lamp", "quantity": 2, "price": "19.99"},
        {"product": "Desk", "quantity": 1, "price": "250.00"},
    ],
}


async def test_create_order(client):
    response = await client.post("/orders", json=PAYLOAD)
    assert response.status_code == 201
    body = response.json()
    assert body["customer"] == "Ada"
    assert body["status"] == "pending"
    assert body["total"] == "289.98"
    assert len(body["lines"]) == 2


async def test_create_order_stores_rows(client, db_session):
    await client.post("/orders", json=PAYLOAD)
    order = (await db_session.execute(select(Order))).scalar_one()
    assert order.customer == "Ada"
    lines = (await db_session.execute(select(OrderLine).order_by(OrderLine.id))).scalars().all()
    assert [line.product for line in lines] == ["Lamp", "Desk"]
    assert lines[0].price == Decimal("19.99")


async def test_create_order_without_lines(client):
    response = await client.post("/orders", json={"customer": "Ada", "lines": []})
    assert response.status_code == 422


@pytest.mark.parametrize("field,value", [("quantity", 0), ("quantity", -1), ("price", "-0.01"), ("price", "1.999"), ("product", "")])
async def test_create_order_invalid_line(client, field, value):
    line = {"product": "Lamp", "quantity": 1, "price": "1.00", field: value}
    response = await client.post("/orders", json={"customer": "Ada", "lines": [line]})
    assert response.status_code == 422


async def test_list_orders_empty(client):
    response = await client.get("/orders")
    assert response.status_code == 200
    assert response.json() == []


async def test_list_orders(client, make_order):
    first = await make_order()
    second = await make_order(customer="Grace")
    response = await client.get("/orders")
    assert response.status_code == 200
    assert [o["id"] for o in response.json()] == [first.id, second.id]


async def test_list_orders_filter_by_status(client, make_order):
    await make_order()
    paid = await make_order(status=OrderStatus.paid)
    response = await client.get("/orders", params={"status": "paid"})
    assert [o["id"] for o in response.json()] == [paid.id]


async def test_list_orders_unknown_status(client):
    response = await client.get("/orders?status=lost")
    assert response.status_code == 422


async def test_list_orders_paging(client, make_order):
    orders = []
    for i in range(5):
        orders.append(await make_order(customer=f"Customer {i}"))
    response = await client.get("/orders", params={"limit": 2, "offset": 2})
    assert [o["id"] for o in response.json()] == [orders[2].id, orders[3].id]


@pytest.mark.parametrize("count", (1, 10))
async def test_list_orders_number_of_queries(client, make_order, queries, count):
    for _ in range(count):
        await make_order(lines=3)
    queries.clear()
    response = await client.get("/orders")
    assert response.status_code == 200 and len(response.json()) == count
    assert len(queries) == 2


async def test_read_order(client, order):
    response = await client.get(f"/orders/{order.id}")
    assert response.status_code == 200
    assert response.json()["total"] == "21.00"


async def test_read_order_not_found(client):
    response = await client.get(f"/orders/{random.randint(1000, 2000)}")
    assert response.status_code == 404
    assert response.json()["detail"] == "Order not found"


async def test_change_status(client, order, db_session):
    response = await client.patch(f"/orders/{order.id}/status", json={"status": "paid"})
    assert response.status_code == 200
    assert response.json()["status"] == "paid"
    await db_session.refresh(order)
    assert order.status == OrderStatus.paid


@pytest.mark.parametrize(
    "old, new",
    [
        (OrderStatus.pending, OrderStatus.shipped),
        (OrderStatus.shipped, OrderStatus.paid),
        (OrderStatus.cancelled, OrderStatus.pending),
    ],
)
async def test_change_status_not_allowed(client, make_order, old, new):
    order = await make_order(status=old)
    response = await client.patch(f"/orders/{order.id}/status", json={"status": new.value})
    assert response.status_code == 409


async def test_change_status_not_found(client):
    response = await client.patch("/orders/1/status", json={"status": "paid"})
    assert response.status_code == 404


async def test_delete_order(client, order, db_session):
    response = await client.delete(f"/orders/{order.id}")
    assert response.status_code == 204
    assert await db_session.scalar(select(func.count()).select_from(Order)) == 0
    assert await db_session.scalar(select(func.count()).select_from(OrderLine)) == 0


async def test_delete_order_not_found(client):
    response = await client.delete("/orders/1")
    assert response.status_code == 404


def test_total_of_order():
    order = Order(lines=[OrderLine(quantity=3, price=Decimal("1.10"))])
    assert order.total == Decimal("3.30")


@pytest.mark.committed
async def test_concurrent_status_changes(client, order):
    responses = await asyncio.gather(
        *[client.patch(f"/orders/{order.id}/status", json={"status": "paid"}) for _ in range(5)]
    )
    codes = sorted(r.status_code for r in responses)
    assert codes == [200, 409, 409, 409, 409]
