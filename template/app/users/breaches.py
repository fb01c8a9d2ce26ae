"""Ask an HTTP API at sign-up whether a password is known from a data breach.

It gets the first five digits of the password's SHA-1, and returns all hashes that begin with them:
https://haveibeenpwned.com/API/v3#PwnedPasswords
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import stamina
from httpx2 import AsyncBaseTransport, AsyncClient, HTTPError, HTTPStatusError, TransportError

from app.settings import Settings

ATTEMPTS = 3


class BreachesUnknownError(Exception):
    """The API was not reached, or its response did not contain hashes."""


class Breaches:
    """The API's client, which all requests share."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def contain(self, password: str) -> bool:
        """Return whether the password is known. Raises BreachesUnknownError."""
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()
        try:
            answer = await self._get(f"/range/{digest[:5]}")
            counts = dict(line.split(":") for line in answer.splitlines())
            return int(counts.get(digest[5:], 0)) > 0  # 0 is padding
        except (HTTPError, ValueError) as error:
            raise BreachesUnknownError(repr(error)) from error

    async def _get(self, path: str) -> str:
        """Return the response of the API; try again if necessary. Raises HTTPError."""
        async for attempt in stamina.retry_context(on=may_pass, attempts=ATTEMPTS):
            with attempt:
                response = await self._client.get(path)
                response.raise_for_status()
        return response.text


def may_pass(error: Exception) -> bool:
    """Return whether another attempt may succeed: after a timeout, a lost connection, or a 5xx."""
    if isinstance(error, HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, TransportError)


@asynccontextmanager
async def open_breaches(
    settings: Settings, transport: AsyncBaseTransport | None = None
) -> AsyncIterator[Breaches | None]:
    """Open the client, or yield None if the settings name no API. Tests replace the transport."""
    if settings.breaches_url is None:
        yield None
        return
    async with AsyncClient(
        base_url=str(settings.breaches_url),
        timeout=settings.breaches_timeout,
        headers={"Add-Padding": "true"},  # or the length of the response would reveal the request
        transport=transport,
    ) as client:
        yield Breaches(client)
