"""The operations on users."""

import logging

from fastapi import status
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.core.problems import ProblemError
from app.users.breaches import Breaches, BreachesUnknownError
from app.users.jobs import send_welcome
from app.users.models import User
from app.users.schemas import LogIn, UserCreate
from app.users.security import Passwords

logger = logging.getLogger(__name__)


class EmailTakenError(ProblemError):
    """Another account has the address.

    So a sign-up reveals who has an account. To hide it, answer alike for all addresses, and create
    the account when its owner follows a link in an e-mail.
    """

    status_code = status.HTTP_409_CONFLICT
    type = "urn:problem-type:email-taken"
    title = "The address already has an account"


class PasswordBreachedError(ProblemError):
    """The password is one of those that attackers try first."""

    status_code = status.HTTP_400_BAD_REQUEST
    type = "urn:problem-type:password-breached"
    title = "The password is known from a data breach"


async def sign_up(
    session: AsyncSession, data: UserCreate, passwords: Passwords, breaches: Breaches | None
) -> User:
    """Create and return an account. Raises PasswordBreachedError, EmailTakenError."""
    password = data.password.get_secret_value()
    # Before the first query, so that it holds no database connection while the API responds.
    if await is_breached(password, breaches):
        raise PasswordBreachedError
    password_hash = await passwords.hash(password)
    user = User(email=data.email, password_hash=password_hash)
    session.add(user)
    try:
        await session.flush()
        await send_welcome.enqueue(session, user_id=user.id)
        await session.commit()
    except IntegrityError as error:  # asking first would leave a gap for a second request
        await session.rollback()
        raise EmailTakenError from error
    return user


async def is_breached(password: str, breaches: Breaches | None) -> bool:
    """Return whether the password is known from a data breach; False if the API cannot tell."""
    try:
        return breaches is not None and await breaches.contain(password)
    except BreachesUnknownError:
        logger.exception("Cannot tell whether the password is known from a data breach")
        return False


async def authenticate(session: AsyncSession, data: LogIn, passwords: Passwords) -> User | None:
    """Return the user with this address and password, or None."""
    user = None
    if "\0" not in data.username:  # PostgreSQL does not accept NUL
        user = await session.scalar(select(User).where(User.email == data.username.lower()))
    await session.commit()  # to hold no connection while it hashes
    password_hash = user.password_hash if user else None
    is_right = await passwords.verify(data.password.get_secret_value(), password_hash)
    return user if is_right else None


async def renew_hash(
    user_id: int, password: str, passwords: Passwords, factory: async_sessionmaker[AsyncSession]
) -> None:
    """Hash the password again, at the cost in the current settings.

    A background task: the request's session is closed by then, so it opens its own. It may get
    lost, since the next log-in does it. Work that must not get lost is a job.
    """
    password_hash = await passwords.hash(password)
    async with factory() as session:
        await session.execute(
            update(User).where(User.id == user_id).values(password_hash=password_hash)
        )
        await session.commit()
