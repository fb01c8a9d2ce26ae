"""Passwords and access tokens."""

from datetime import UTC, datetime, timedelta

import jwt
from anyio import to_thread
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.settings import Settings

ALGORITHM = "HS256"


def password_hasher(settings: Settings) -> PasswordHash:
    """Make the hasher with the costs that `settings` name."""
    hasher = Argon2Hasher(
        time_cost=settings.argon2_time_cost, memory_cost=settings.argon2_memory_kib
    )
    return PasswordHash((hasher,))


async def hash_password(password: str, settings: Settings) -> str:
    """Hash `password` in a thread: argon2 would hold up the event loop."""
    return await to_thread.run_sync(password_hasher(settings).hash, password)


async def verify_password(password: str, password_hash: str | None, settings: Settings) -> bool:
    """Say whether `password` is the one that was hashed.

    Without a hash, as for an unknown account, it takes as long and is False:
    the time of the answer must not tell which addresses have an account.
    """
    if password_hash is None:
        await hash_password(password, settings)
        return False
    return await to_thread.run_sync(password_hasher(settings).verify, password, password_hash)


def create_access_token(user_id: int, settings: Settings) -> str:
    """Sign a token for the user, valid for `settings.access_token_minutes` from now."""
    expires_at = datetime.now(UTC) + timedelta(minutes=settings.access_token_minutes)
    return jwt.encode(
        {"sub": str(user_id), "exp": expires_at},
        settings.secret_key.get_secret_value(),
        algorithm=ALGORITHM,
    )


def read_access_token(token: str, settings: Settings) -> int | None:
    """Return the id of the token's user; None when it is expired, forged or malformed."""
    try:
        claims = jwt.decode(
            token,
            settings.secret_key.get_secret_value(),
            algorithms=[ALGORITHM],
            options={"require": ["exp", "sub"]},
        )
        return int(claims["sub"])
    except (jwt.InvalidTokenError, ValueError):
        return None
