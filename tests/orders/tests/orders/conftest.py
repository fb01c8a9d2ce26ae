import pytest

from app.orders.models import Order, OrderLine, OrderStatus


@pytest.fixture
def make_order(db_session):
    async def make(customer="Ada", status=OrderStatus.pending, lines=1):
        order = Order(customer=customer, status=status)
        order.lines = [
            OrderLine(product=f"Product {i}", quantity=2, price=10.5) for i in range(lines)
        ]
        db_session.add(order)
        await db_session.commit()
        return order

    return make


@pytest.fixture
async def order(make_order):
    return await make_order()
