"""What can be done with users."""

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.settings import Settings
from app.users.models import User
from app.users.schemas import UserCreate
from app.users.security import hash_password, verify_password


class EmailTakenError(Exception):
    """The address has an account already."""


async def sign_up(session: AsyncSession, data: UserCreate, settings: Settings) -> User:
    """Create an account. Raises EmailTakenError."""
    password_hash = await hash_password(data.password.get_secret_value(), settings)
    user = User(email=data.email, password_hash=password_hash)
    session.add(user)
    try:
        await session.commit()
    except IntegrityError as error:  # asking first would leave a gap for a second request
        await session.rollback()
        raise EmailTakenError(data.email) from error
    return user


async def authenticate(
    session: AsyncSession, email: str, password: str, settings: Settings
) -> User | None:
    """Return the user whose address and password these are, or None."""
    email = email.replace("\0", "").lower()  # PostgreSQL takes no NUL in a text
    user = await session.scalar(select(User).where(User.email == email))
    password_hash = user.password_hash if user else None
    return user if await verify_password(password, password_hash, settings) else None
