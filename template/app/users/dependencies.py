"""What other features ask of this one."""

from typing import Annotated

from fastapi import Depends, HTTPException, status
from fastapi.security import OAuth2PasswordBearer

from app.core.database import SessionDep
from app.core.dependencies import SettingsDep
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
