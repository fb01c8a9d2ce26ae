"""Hosts, origins, headers and documentation: with the settings, and by default."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.middleware.base import RequestResponseEndpoint

from app.core.application import build_app
from app.core.problems import add_problem_details
from app.settings import Settings
from tests.harness.asgi import running
from tests.http_client import ASGIWebSocketTransport, AsyncClient

ClientWith = Callable[..., AbstractAsyncContextManager[AsyncClient]]
PREFLIGHT = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "DELETE"}


def add_endpoints(app: FastAPI) -> None:
    """Add the endpoints that the tests call, and a middleware, as a project may have."""

    @app.middleware("http")
    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    @app.get("/cached")
    async def cache(response: Response) -> None:
        response.headers["Cache-Control"] = "max-age=60"

    @app.get("/broken")
    async def fail() -> None:
        raise ZeroDivisionError

    @app.get("/plain")
    async def answer_plain() -> Response:
        return PlainTextResponse("No", 400)

    @app.post("/texts")
    async def take_text(text: Annotated[str, Body()]) -> int:
        return len(text)

    @app.get("/slash/")
    async def answer_slash() -> None:
        pass


@pytest.fixture
def client_with(settings: Settings) -> ClientWith:
    """Makes a client of a separate application with other settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {}

    @asynccontextmanager
    async def client_with(
        options: dict[str, Any] | None = None, **changes: object
    ) -> AsyncIterator[AsyncClient]:
        app = build_app(settings.model_copy(update=changes), lifespan, **(options or {}))
        add_problem_details(app)
        add_endpoints(app)
        transport = ASGIWebSocketTransport(app=app, raise_app_exceptions=False)
        async with running(app), AsyncClient(transport=transport, base_url="http://test") as client:
            yield client

    return client_with


async def test_any_host_is_served_unless_set(client_with: ClientWith) -> None:
    async with client_with() as client:
        response = await client.get("/cached", headers={"Host": "evil.com"})
    assert response.status_code == 200


@pytest.mark.parametrize("host", ["api.example.com", "API.example.com:8000", "a.b.example.org"])
async def test_host_that_is_allowed_is_served(client_with: ClientWith, host: str) -> None:
    async with client_with(allowed_hosts=("api.example.com", "*.example.org")) as client:
        assert (await client.get("/cached", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "example.com", "api.example.com.evil.com", "@"])
@pytest.mark.parametrize("path", ["/cached", "/slash", "/nowhere", "/livez/"])
async def test_another_host_is_refused_and_not_redirected_to(
    client_with: ClientWith, host: str, path: str
) -> None:
    async with client_with(allowed_hosts=("api.example.com", "www.example.com")) as client:
        response = await client.get(path, headers={"Host": host})
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "Invalid host header",
        "instance": path,
        "request_id": response.headers["X-Request-ID"],
    }
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.committed  # because /readyz asks the database
@pytest.mark.usefixtures("isolation")
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probe_answers_under_any_name(client_with: ClientWith, path: str) -> None:
    async with client_with(allowed_hosts=("api.example.com",)) as client:
        assert (await client.get(path, headers={"Host": "10.0.0.7:8000"})).status_code == 200


async def test_pages_of_other_origins_are_not_served_unless_set(client_with: ClientWith) -> None:
    async with client_with() as client:
        preflight = await client.options("/cached", headers=PREFLIGHT)
        response = await client.get("/cached", headers=PREFLIGHT)
    assert preflight.status_code == 405
    assert "Access-Control-Allow-Origin" not in {*preflight.headers, *response.headers}


@pytest.mark.parametrize("path", ["/cached", "/broken", "/nowhere"])
async def test_page_of_an_allowed_origin_is_served(client_with: ClientWith, path: str) -> None:
    headers = {**PREFLIGHT, "Access-Control-Request-Headers": "Authorization"}
    async with client_with(cors_origins=("https://app.example.com",)) as client:
        preflight = await client.options(path, headers=headers)
        response = await client.get(path, headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Headers"] == "Authorization"
    assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
    for each in (preflight, response):
        assert each.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert "Access-Control-Allow-Credentials" not in each.headers
    assert response.headers["Access-Control-Expose-Headers"] == "Retry-After, X-Request-ID"


async def test_page_of_another_origin_is_refused(client_with: ClientWith) -> None:
    async with client_with(cors_origins=("https://example.com",)) as client:
        response = await client.options("/cached", headers=PREFLIGHT)
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["detail"] == "Disallowed CORS origin"
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("path", ["/cached", "/broken", "/nowhere", "/docs", "/livez"])
async def test_every_response_has_the_headers(client_with: ClientWith, path: str) -> None:
    async with client_with() as client:
        response = await client.get(path)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "no-store" not in response.headers.get("Cache-Control", "")


@pytest.mark.parametrize(
    ("path", "expected"), [("/nowhere", "no-store"), ("/cached", "max-age=60")]
)
async def test_nobody_stores_what_was_for_one_client(
    client_with: ClientWith, path: str, expected: str
) -> None:
    async with client_with() as client:
        response = await client.get(path, headers={"Authorization": "Bearer token"})
    assert response.headers["Cache-Control"] == expected


async def test_plain_text_of_an_endpoint_stays(client_with: ClientWith) -> None:
    async with client_with() as client:
        response = await client.get("/plain")
    assert (response.status_code, response.text) == (400, "No")


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
async def test_documentation_can_be_switched_off(client_with: ClientWith, path: str) -> None:
    async with client_with() as client:
        assert (await client.get(path)).status_code == 200
    async with client_with(api_docs=False) as client:
        assert (await client.get(path)).status_code == 404


async def test_body_is_limited_by_the_settings(client_with: ClientWith) -> None:
    assert Settings.model_fields["max_body_size"].default == 10 * 1024 * 1024
    async with client_with(max_body_size=10) as client:
        assert (await client.post("/texts", json="12345678")).json() == 8
        response = await client.post("/texts", json="123456789")
    assert response.status_code == 413
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_application_may_set_another_limit_than_the_settings(client_with: ClientWith) -> None:
    async with client_with({"max_body_size": 20}, max_body_size=10) as client:
        assert (await client.post("/texts", json="123456789")).json() == 9
