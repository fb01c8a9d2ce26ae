"""An outgoing HTTP API. Only the transport is replaced, so URL, headers and retries are tested."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha1

import pytest
import stamina
from fastapi import FastAPI
from httpx2 import ConnectError, MockTransport, ReadTimeout, Request, Response
from pydantic import HttpUrl
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.main import create_app
from app.settings import Settings
from app.users.breaches import ATTEMPTS, Breaches, open_breaches
from app.users.dependencies import get_breaches
from app.users.models import User
from tests.harness.asgi import running
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD

ADA = {"email": "ada@example.com", "password": PASSWORD}
DIGEST = sha1(PASSWORD.encode(), usedforsecurity=False).hexdigest().upper()
OTHERS = f"{'0' * 35}:3\r\n{'F' * 35}:1"
KNOWN = Response(200, text=f"{OTHERS}\r\n{DIGEST[5:]}:42")
UNKNOWN = Response(200, text=OTHERS)
PADDING = Response(200, text=f"{OTHERS}\r\n{DIGEST[5:]}:0")


@dataclass
class Api:
    """A test double of the API: it gives the answers, repeats the last, and keeps the requests."""

    answers: list[Response | Exception] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def breaches_settings(settings: Settings) -> Settings:
    """Settings that name the API."""
    url = HttpUrl("https://breaches.example.com/v3")
    return settings.model_copy(update={"breaches_url": url, "breaches_timeout": 1.5})


@pytest.fixture
async def api(app: FastAPI, breaches_settings: Settings) -> AsyncIterator[Api]:
    """The API that sign-ups call. There is no wait between attempts."""
    api = Api()
    async with open_breaches(breaches_settings, MockTransport(api)) as breaches:
        app.dependency_overrides[get_breaches] = lambda: breaches
        with stamina.set_testing(True, attempts=ATTEMPTS, cap=True):
            yield api


async def test_known_password_is_refused(
    client: AsyncClient, api: Api, db_session: AsyncSession
) -> None:
    api.answers = [KNOWN]
    response = await client.post("/users", json=ADA)
    assert response.status_code == 400
    assert response.json()["type"] == "urn:problem-type:password-breached"
    assert await db_session.scalar(select(func.count()).select_from(User)) == 0


@pytest.mark.parametrize("answer", [UNKNOWN, PADDING])
async def test_unknown_password_is_taken(client: AsyncClient, api: Api, answer: Response) -> None:
    api.answers = [answer]
    assert (await client.post("/users", json=ADA)).status_code == 201


async def test_api_is_asked_as_the_settings_say(client: AsyncClient, api: Api) -> None:
    api.answers = [UNKNOWN]
    await client.post("/users", json=ADA)
    [request] = api.requests
    assert request.method == "GET"
    assert str(request.url) == f"https://breaches.example.com/v3/range/{DIGEST[:5]}"
    assert request.headers["Add-Padding"] == "true"
    assert set(request.extensions["timeout"].values()) == {1.5}


@pytest.mark.parametrize("failure", [Response(503), ReadTimeout("slow"), ConnectError("down")])
async def test_failure_that_passes_is_not_noticed(
    client: AsyncClient, api: Api, failure: Response | Exception
) -> None:
    api.answers = [failure, KNOWN]
    assert (await client.post("/users", json=ADA)).status_code == 400
    assert len(api.requests) == 2


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [
        (Response(503), ATTEMPTS),
        (ReadTimeout("slow"), ATTEMPTS),
        (ConnectError("down"), ATTEMPTS),
        (Response(400), 1),  # another attempt would not help
        (Response(200, text="<html>Sorry!</html>"), 1),
        (Response(200, text=f"{DIGEST[5:]}:many"), 1),
    ],
)
async def test_account_is_made_when_the_api_does_not_help(
    client: AsyncClient,
    api: Api,
    failure: Response | Exception,
    attempts: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.answers = [failure]
    assert (await client.post("/users", json=ADA)).status_code == 201
    assert len(api.requests) == attempts
    assert "Cannot tell whether the password is known" in caplog.text
    assert PASSWORD not in caplog.text


async def test_lifespan_opens_the_client_that_the_settings_ask_for(
    settings: Settings, breaches_settings: Settings
) -> None:
    async with running(create_app(settings)) as without:
        assert without.lifespan_state["breaches"] is None
    async with running(create_app(breaches_settings)) as with_url:
        assert isinstance(with_url.lifespan_state["breaches"], Breaches)
