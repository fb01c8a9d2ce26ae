"""The ways for a test to authenticate its client."""

from collections.abc import Generator

from fastapi import FastAPI

from app.users.models import User
from app.users.security import create_access_token
from tests.conftest import MakeClient
from tests.http_client import AsyncClient, Auth, Request, Response
from tests.users.factories import PASSWORD, UserFactory
from tests.users.fixtures import ClientFor


class LogIn(Auth):
    """Logs in before the first request, and sends the token with every request."""

    requires_response_body = True

    def __init__(self, email: str, password: str) -> None:
        self.form = {"username": email, "password": password}
        self.token: str | None = None

    def auth_flow(self, request: Request) -> Generator[Request, Response]:
        if self.token is None:
            response = yield Request("POST", request.url.join("/token"), data=self.form)
            self.token = response.json()["access_token"]
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


async def test_without_a_token_the_account_stays_shut(client: AsyncClient) -> None:
    response = await client.get("/users/me")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_headers_of_the_client_authenticate_each_request(
    client_for: ClientFor, user: User
) -> None:
    client = await client_for(user)
    for _ in range(2):
        assert (await client.get("/users/me")).json()["id"] == user.id


async def test_headers_of_one_request_authenticate_that_request(
    client: AsyncClient, app: FastAPI, user: User
) -> None:
    token = create_access_token(user.id, app.state.settings)
    known = await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})
    unknown = await client.get("/users/me")
    assert (known.status_code, unknown.status_code) == (200, 401)


async def test_auth_class_logs_in_by_itself(make_client: MakeClient, user: User) -> None:
    client = await make_client(auth=LogIn(user.email, PASSWORD))
    for _ in range(2):
        assert (await client.get("/users/me")).json()["id"] == user.id


async def test_two_users_at_once_stay_apart(
    client_for: ClientFor, user_factory: type[UserFactory]
) -> None:
    ada, bob = await user_factory.create_batch_async(2)
    as_ada, as_bob = await client_for(ada), await client_for(bob)
    answers = [await client.get("/users/me") for client in (as_ada, as_bob, as_ada)]
    assert [answer.json()["id"] for answer in answers] == [ada.id, bob.id, ada.id]
