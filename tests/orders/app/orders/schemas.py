from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from app.core.schemas import NO_NUL
from app.orders.models import OrderStatus


class OrderLineCreate(BaseModel):
    product: str = Field(min_length=1, max_length=50, pattern=NO_NUL)
    quantity: int = Field(gt=0, le=1000)
    price: Decimal = Field(ge=0, max_digits=10, decimal_places=2)


class OrderCreate(BaseModel):
    customer: str = Field(min_length=1, max_length=100, pattern=NO_NUL)
    lines: list[OrderLineCreate] = Field(min_length=1)


class OrderStatusUpdate(BaseModel):
    status: OrderStatus


class OrderLineRead(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    product: str
    quantity: int
    price: Decimal


class OrderRead(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    customer: str
    status: OrderStatus
    created_at: datetime
    total: Decimal
    lines: list[OrderLineRead]
