"""The models of an item."""

from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, Enum, ForeignKey, Index, Integer, Numeric, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.database import Base


class ItemStatus(StrEnum):
    """Whether an item is for sale or sold."""

    OWNED = "owned"
    FOR_SALE = "for_sale"
    SOLD = "sold"


class Item(Base):
    """Something that a user owns."""

    __tablename__ = "items"
    # For pages of an owner's items, see app/core/pages.py.
    __table_args__ = (Index(None, "owner_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(String(2000))
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    # A type with this name on PostgreSQL, a CHECK on SQLite; it stores values, not names.
    status: Mapped[ItemStatus] = mapped_column(
        Enum(
            ItemStatus,
            name="item_status",
            create_constraint=True,
            values_callable=lambda statuses: [status.value for status in statuses],
        )
    )
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    # Async code cannot lazy-load: let every query that forgets the tags fail.
    tags: Mapped[list["Tag"]] = relationship(
        back_populates="item", cascade="all, delete-orphan", order_by="Tag.name", lazy="raise"
    )


class Tag(Base):
    """A word to find an item by."""

    __tablename__ = "tags"

    item_id: Mapped[int] = mapped_column(
        ForeignKey("items.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    item: Mapped[Item] = relationship(back_populates="tags", lazy="raise")


ItemEventKind = Literal["created", "changed", "deleted"]


class ItemEvent(Base):
    """What happened to an item. Kept for a while, for followers that connect again."""

    __tablename__ = "item_events"
    __table_args__ = (Index(None, "owner_id", "id"),)

    # There are more events than items; but on SQLite, only an INTEGER is numbered.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[ItemEventKind] = mapped_column(String(7))
    # The item after the change, or before it was deleted.
    item: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC), index=True)
