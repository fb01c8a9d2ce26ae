"""Limit the attempts to log in, per account and per client.

Each process counts for itself, in memory: with several of them, a client gets as many attempts
from each. Behind a proxy, let the server read the client's address from its headers
(FORWARDED_ALLOW_IPS of uvicorn), or all clients count as one.
"""

from collections import OrderedDict
from math import ceil
from typing import cast

from fastapi import status
from pyrate_limiter import Duration, InMemoryBucket, MonotonicClock, Rate, RateItem

from app.core.problems import ProblemError
from app.settings import Settings

REMEMBERED = 10_000  # accounts, and as many clients


class TooManyLogInsError(ProblemError):
    """There were too many attempts, for an account or from an address."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    type = "urn:problem-type:too-many-log-ins"
    title = "Too many attempts to log in"


class Attempts:
    """Counts the attempts per minute for each key, such as an address.

    If there are more than `remembered` keys, it forgets the least recently used one.
    """

    def __init__(self, limit: int, remembered: int = REMEMBERED) -> None:
        self._rates = [Rate(limit, Duration.MINUTE)]
        self._remembered = remembered
        self._clock = MonotonicClock()
        self.buckets: OrderedDict[str, InMemoryBucket] = OrderedDict()

    def add(self, key: str) -> None:
        """Count an attempt. Raises TooManyLogInsError, which says when to try again."""
        bucket = self.buckets.setdefault(key, InMemoryBucket(self._rates))
        self.buckets.move_to_end(key)
        if len(self.buckets) > self._remembered:
            self.buckets.popitem(last=False)
        now = self._clock.now()
        bucket.leak(now)
        attempt = RateItem(key, now)
        if not bucket.put(attempt):
            milliseconds = cast("int", bucket.waiting(attempt))  # this bucket does not await
            raise TooManyLogInsError(headers={"Retry-After": str(ceil(milliseconds / 1000))})


class LogInLimits:
    """The log-in limits in the settings. The application has one instance."""

    def __init__(self, settings: Settings) -> None:
        self._of_accounts = Attempts(settings.log_ins_per_account)
        self._of_clients = Attempts(settings.log_ins_per_client)

    def count(self, email: str, address: str) -> None:
        """Count an attempt, successful or not. Raises TooManyLogInsError.

        It counts unknown accounts too, so as not to reveal which exist.
        """
        self._of_clients.add(address)
        self._of_accounts.add(email.lower())
