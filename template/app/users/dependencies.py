"""Dependencies of endpoints: the current user, and what the lifespan has opened."""

from typing import Annotated

from fastapi import Depends, HTTPException, status
from fastapi.requests import HTTPConnection
from fastapi.security import OAuth2PasswordBearer

from app.core.database import SessionDep
from app.core.dependencies import SettingsDep
from app.users.breaches import Breaches
from app.users.log_in_limits import LogInLimits
from app.users.models import User
from app.users.security import AccessToken, Passwords, read_access_token

TokenDep = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="token"))]


class InvalidTokenError(HTTPException):
    """The request has no valid access token."""

    def __init__(self) -> None:
        super().__init__(
            status.HTTP_401_UNAUTHORIZED,
            "The access token is not valid",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def get_access_token(token: TokenDep, settings: SettingsDep) -> AccessToken:
    """Return the content of the request's access token. Raises InvalidTokenError."""
    access_token = read_access_token(token, settings)
    if access_token is None:
        raise InvalidTokenError
    return access_token


AccessTokenDep = Annotated[AccessToken, Depends(get_access_token)]


async def get_current_user(access_token: AccessTokenDep, session: SessionDep) -> User:
    """Return the user of the request's access token. Raises InvalidTokenError."""
    user = await session.get(User, access_token.user_id)
    if user is None:
        raise InvalidTokenError
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]


async def get_breaches(connection: HTTPConnection) -> Breaches | None:
    """Return the client that the lifespan opened, or None if the settings name no API."""
    breaches: Breaches | None = connection.state.breaches
    return breaches


BreachesDep = Annotated[Breaches | None, Depends(get_breaches)]


async def get_passwords(connection: HTTPConnection) -> Passwords:
    """Return the password hasher of the application."""
    passwords: Passwords = connection.state.passwords
    return passwords


PasswordsDep = Annotated[Passwords, Depends(get_passwords)]


async def get_log_in_limits(connection: HTTPConnection) -> LogInLimits:
    """Return the log-in limits of the application."""
    limits: LogInLimits = connection.state.log_in_limits
    return limits


LogInLimitsDep = Annotated[LogInLimits, Depends(get_log_in_limits)]
