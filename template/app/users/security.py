"""Passwords and access tokens."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import jwt
from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.settings import Settings

ALGORITHM = "HS256"
TOKEN_TYPE = "at+jwt"  # noqa: S105  (the type of access tokens in RFC 9068)
IDS = range(1, 2**31)  # those that an INTEGER can hold
CLAIMS = ["iss", "aud", "sub", "iat", "exp"]


class Passwords:
    """Hashes passwords at the cost in the settings, in threads, since argon2 blocks the event loop.

    It computes at most `argon2_concurrency` hashes at once, as each needs `argon2_memory_kib`.
    The application has one instance, which its lifespan opens.
    """

    def __init__(self, settings: Settings) -> None:
        hasher = Argon2Hasher(
            time_cost=settings.argon2_time_cost, memory_cost=settings.argon2_memory_kib
        )
        self._hasher = hasher
        self._password_hash = PasswordHash((hasher,))
        self.limiter = CapacityLimiter(settings.argon2_concurrency)

    async def hash(self, password: str) -> str:
        """Hash `password`."""
        return await to_thread.run_sync(self._password_hash.hash, password, limiter=self.limiter)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether `password` is the one that was hashed.

        Without a hash, as for an unknown account, it takes as long and returns False:
        the response time must not reveal which addresses have an account.
        """
        if password_hash is None:
            await self.hash(password)
            return False
        return await to_thread.run_sync(
            self._password_hash.verify, password, password_hash, limiter=self.limiter
        )

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether the hash was made at a different cost than the settings require."""
        return self._hasher.check_needs_rehash(password_hash)


class AccessToken(NamedTuple):
    """The content of an access token: its user, and when it expires."""

    user_id: int
    expires_at: datetime


def create_access_token(user_id: int, settings: Settings) -> str:
    """Sign a token for the user, valid for `settings.access_token_minutes` from now."""
    now = datetime.now(UTC)
    claims = {
        "iss": settings.access_token_issuer,
        "aud": settings.access_token_audience,
        "sub": str(user_id),
        "iat": now,
        "exp": now + timedelta(minutes=settings.access_token_minutes),
    }
    key = settings.secret_key.get_secret_value()
    return jwt.encode(claims, key, ALGORITHM, headers={"typ": TOKEN_TYPE})


def read_access_token(token: str, settings: Settings) -> AccessToken | None:
    """Return the token's content, or None if it is expired, forged or not an access token."""
    try:
        decoded = jwt.decode_complete(
            token,
            settings.secret_key.get_secret_value(),
            algorithms=[ALGORITHM],
            issuer=settings.access_token_issuer,
            audience=settings.access_token_audience,
            options={"require": CLAIMS, "strict_aud": True},
        )
        claims = decoded["payload"]
        user_id = int(claims["sub"])
        expires_at = datetime.fromtimestamp(claims["exp"], UTC)
    except (jwt.InvalidTokenError, ValueError, OverflowError):
        return None
    # The same key may sign other things, such as links that confirm an address.
    if decoded["header"].get("typ") != TOKEN_TYPE or user_id not in IDS:
        return None
    return AccessToken(user_id, expires_at)
