"""What endpoints ask for: the user who calls, a way to send e-mail, an outgoing API."""

from typing import Annotated

from fastapi import Depends, HTTPException, status
from fastapi.requests import HTTPConnection
from fastapi.security import OAuth2PasswordBearer

from app.core.database import SessionDep
from app.core.dependencies import SettingsDep
from app.users.breaches import Breaches
from app.users.email import EmailSender, LogSender, SmtpSender
from app.users.models import User
from app.users.security import read_access_token

TokenDep = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="token"))]


async def get_current_user(token: TokenDep, session: SessionDep, settings: SettingsDep) -> User:
    """Return the user whose token the request carries. Raises HTTPException 401."""
    user_id = read_access_token(token, settings)
    user = await session.get(User, user_id) if user_id is not None else None
    if user is None:
        raise HTTPException(
            status.HTTP_401_UNAUTHORIZED,
            "The access token is not valid",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]


def get_email_sender(settings: SettingsDep) -> EmailSender:
    """Return the sender that the settings ask for."""
    return SmtpSender(settings) if settings.smtp_host else LogSender()


EmailSenderDep = Annotated[EmailSender, Depends(get_email_sender)]


def get_breaches(connection: HTTPConnection) -> Breaches | None:
    """Return the client that the lifespan opened, if the settings ask for one."""
    breaches: Breaches | None = connection.state.breaches
    return breaches


BreachesDep = Annotated[Breaches | None, Depends(get_breaches)]
