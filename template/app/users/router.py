"""The users' endpoints: sign up, log in, and read your account."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Form, HTTPException, Request, Response, status

from app.core.database import ReadOnlySessionDep, SessionDep, SessionFactoryDep
from app.core.dependencies import SettingsDep
from app.core.problems import responses_of
from app.users import service
from app.users.dependencies import BreachesDep, CurrentUser, LogInLimitsDep, PasswordsDep
from app.users.log_in_limits import TooManyLogInsError
from app.users.models import User
from app.users.schemas import LogIn, Token, UserCreate, UserRead
from app.users.security import create_access_token
from app.users.service import EmailTakenError, PasswordBreachedError

router = APIRouter(tags=["users"])


@router.post(
    "/users",
    status_code=status.HTTP_201_CREATED,
    response_model=UserRead,
    responses=responses_of(PasswordBreachedError, EmailTakenError),
)
async def sign_up(
    data: UserCreate,
    session: SessionDep,
    passwords: PasswordsDep,
    breaches: BreachesDep,
) -> User:
    """Create an account; send its owner a welcome e-mail."""
    return await service.sign_up(session, data, passwords, breaches)


@router.post(
    "/token",
    responses={
        status.HTTP_401_UNAUTHORIZED: {"description": "Wrong address or password"},
        **responses_of(TooManyLogInsError),
    },
)
async def log_in(
    data: Annotated[LogIn, Form()],
    session: ReadOnlySessionDep,
    factory: SessionFactoryDep,
    passwords: PasswordsDep,
    limits: LogInLimitsDep,
    settings: SettingsDep,
    request: Request,
    response: Response,
    background: BackgroundTasks,
) -> Token:
    """Exchange an address and a password for an access token."""
    limits.count(data.username, request.client.host if request.client else "")
    user = await service.authenticate(session, data, passwords)
    if user is None:
        raise HTTPException(
            status.HTTP_401_UNAUTHORIZED,
            "Wrong address or password",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if passwords.is_outdated(user.password_hash):
        password = data.password.get_secret_value()
        background.add_task(service.renew_hash, user.id, password, passwords, factory)
    response.headers["Cache-Control"] = "no-store"  # RFC 6749 requires it
    return Token(access_token=create_access_token(user.id, settings))


@router.get("/users/me", response_model=UserRead)
async def read_me(user: CurrentUser) -> User:
    """Return the account that the access token belongs to."""
    return user
