"""The bare application: FastAPI and SQLAlchemy as their documentation shows them, and no more.

It serves three endpoints of the example on the same database with the same queries. It runs with
the packages of a rendered project: see service.py.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, get_args

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Enum,
    ForeignKey,
    Integer,
    Numeric,
    String,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

SECRET_KEY, ALGORITHM = os.environ["SECRET_KEY"], "HS256"
AUDIENCE = os.environ["TOKEN_AUDIENCE"]
PAGE = 50

URL = make_url(os.environ["DATABASE_URL"])
IS_SQLITE = URL.get_backend_name() == "sqlite"
# With the driver's default of five seconds, some of many concurrent writers get an error.
engine = create_async_engine(URL, connect_args={"timeout": 30} if IS_SQLITE else {})
Session = async_sessionmaker(engine, expire_on_commit=False)

if IS_SQLITE:

    @event.listens_for(engine.sync_engine, "connect")
    def set_up_connection(connection: Any, _: object) -> None:
        """Write as fast as the service does."""
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()


Status = Literal["owned", "for_sale", "sold"]


class Base(DeclarativeBase):
    """The base of the models, with the types of the service's columns."""

    type_annotation_map: ClassVar = {
        datetime: DateTime(timezone=True),
        Decimal: Numeric(12, 2),
        dict[str, Any]: JSON,
        Status: Enum(*get_args(Status), name="item_status"),
    }


class User(Base):
    """An account."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    password_hash: Mapped[str]
    created_at: Mapped[datetime]
    welcomed_at: Mapped[datetime | None]


class Item(Base):
    """Something that a user owns."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    title: Mapped[str]
    description: Mapped[str | None]
    price: Mapped[Decimal]
    status: Mapped[Status]
    created_at: Mapped[datetime]
    tags: Mapped[list["Tag"]] = relationship(order_by="Tag.name", lazy="raise")


class Tag(Base):
    """A word that an item is found by."""

    __tablename__ = "tags"

    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), primary_key=True)


class ItemEvent(Base):
    """What happened to an item."""

    __tablename__ = "item_events"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    kind: Mapped[str]
    item: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class TagRead(BaseModel):
    """What a client sees of a tag."""

    model_config = ConfigDict(from_attributes=True)
    name: str


class ItemCreate(BaseModel):
    """A new item."""

    title: str
    description: str | None = None
    price: Decimal = Decimal(0)
    status: Status = "owned"
    tags: list[TagRead] = []


class ItemRead(ItemCreate):
    """What a client sees of an item."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    owner_id: int
    created_at: datetime


async def get_session() -> AsyncIterator[AsyncSession]:
    """Give a session for the request."""
    async with Session() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
TokenDep = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="token"))]


async def get_user(token: TokenDep, session: SessionDep) -> User:
    """Return the user whose token this is."""
    claims = jwt.decode(token, SECRET_KEY, algorithms=[ALGORITHM], audience=AUDIENCE)
    user = await session.get(User, int(claims["sub"]))
    if user is None:
        raise HTTPException(401)
    return user


UserDep = Annotated[User, Depends(get_user)]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the connections at the end."""
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/livez")
async def live() -> str:
    """Answer."""
    return "ok"


@app.get("/items/{item_id}", response_model=ItemRead)
async def read_item(item_id: int, session: SessionDep, user: UserDep) -> Item:
    """Read one item."""
    query = select(Item).where(Item.id == item_id, Item.owner_id == user.id)
    item = await session.scalar(query.options(selectinload(Item.tags)))
    if item is None:
        raise HTTPException(404)
    return item


@app.get("/items", response_model=list[ItemRead])
async def list_items(session: SessionDep, user: UserDep, limit: int = PAGE) -> list[Item]:
    """List the first page."""
    query = select(Item).where(Item.owner_id == user.id).options(selectinload(Item.tags))
    return list(await session.scalars(query.order_by(Item.id).limit(limit + 1)))


@app.post("/items", status_code=201, response_model=ItemRead)
async def create_item(data: ItemCreate, session: SessionDep, user: UserDep) -> Item:
    """Create an item and its event, and notify followers."""
    now = datetime.now(UTC)
    fields = data.model_dump(exclude={"tags"})
    tags = [Tag(name=tag.name) for tag in data.tags]
    item = Item(owner_id=user.id, created_at=now, tags=tags, **fields)
    session.add(item)
    await session.flush()
    await session.execute(select(User.id).where(User.id == user.id).with_for_update(key_share=True))
    content = ItemRead.model_validate(item).model_dump(mode="json")
    session.add(ItemEvent(owner_id=user.id, kind="created", item=content, created_at=now))
    if not IS_SQLITE:
        await session.execute(select(func.pg_notify("app_notifications", f"item_events {user.id}")))
    await session.commit()
    return item
