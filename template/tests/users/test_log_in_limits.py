"""Too many log-in attempts, with a clock that tests can move."""

from dataclasses import dataclass

import pytest
from pyrate_limiter import MonotonicClock

from app.settings import Settings
from app.users.log_in_limits import Attempts, LogInLimits, TooManyLogInsError
from app.users.models import User
from tests.harness.asgi import RunningApp
from tests.http_client import AsyncClient, Response
from tests.users.factories import PASSWORD


@dataclass
class Clock:
    """The time, in milliseconds."""

    now: int = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that counts the attempts."""
    clock = Clock()
    monkeypatch.setattr(MonotonicClock, "now", lambda _: clock.now)
    return clock


@pytest.fixture(autouse=True)
def limits(
    running_app: RunningApp, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> LogInLimits:
    """The application's limits: three attempts a minute for an account, five for a client."""
    few = settings.model_copy(update={"log_ins_per_account": 3, "log_ins_per_client": 5})
    limits = LogInLimits(few)
    monkeypatch.setitem(running_app.lifespan_state, "log_in_limits", limits)
    return limits


async def log_in(client: AsyncClient, email: str, password: str = PASSWORD) -> Response:
    return await client.post("/token", data={"username": email, "password": password})


async def test_attempts_for_an_account_are_limited(
    client: AsyncClient, user: User, clock: Clock
) -> None:
    wrong = [await log_in(client, user.email, "not the password") for _ in range(3)]
    assert [response.status_code for response in wrong] == [401, 401, 401]
    clock.now = 20_000
    refused = await log_in(client, user.email.upper())
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "41"
    assert refused.json()["type"] == "urn:problem-type:too-many-log-ins"
    clock.now += 41_000
    assert (await log_in(client, user.email)).status_code == 200


async def test_attempts_of_a_client_are_limited(client: AsyncClient, user: User) -> None:
    for number in range(5):
        assert (await log_in(client, f"nobody{number}@example.com")).status_code == 401
    assert (await log_in(client, user.email)).status_code == 429


async def test_unknown_account_is_limited_as_well(client: AsyncClient) -> None:
    answers = [await log_in(client, "nobody@example.com") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]


async def test_clients_do_not_share_their_attempts(limits: LogInLimits) -> None:
    for number in range(5):
        limits.count(f"ada{number}@example.com", "192.0.2.1")
    limits.count("bob@example.com", "192.0.2.2")
    with pytest.raises(TooManyLogInsError):
        limits.count("bob@example.com", "192.0.2.1")


async def test_refused_attempts_do_not_make_it_longer(clock: Clock) -> None:
    attempts = Attempts(1)
    attempts.add("ada")
    for clock.now in (30_000, 60_000):
        with pytest.raises(TooManyLogInsError):
            attempts.add("ada")
    clock.now = 60_001
    attempts.add("ada")


async def test_only_the_last_keys_are_remembered() -> None:
    attempts = Attempts(2, remembered=2)
    for key in ("ada", "bob", "ada", "eve"):
        attempts.add(key)
    with pytest.raises(TooManyLogInsError):
        attempts.add("ada")
    assert set(attempts.buckets) == {"ada", "eve"}


async def test_only_the_last_minute_is_remembered(clock: Clock) -> None:
    attempts = Attempts(3)
    for clock.now in (0, 40_000, 80_000):
        attempts.add("ada")
    assert attempts.buckets["ada"].count() == 2
