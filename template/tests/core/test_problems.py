"""Errors, with and without problem details: what they answer, declare, and do not reveal."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Body, Depends, FastAPI, HTTPException, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field, SecretStr

from app.core.application import build_app
from app.core.problems import (
    ProblemDetails,
    ProblemError,
    ValidationProblemDetails,
    add_problem_details,
    answer_as_fastapi_does,
    declare_problems,
    responses_of,
)
from app.settings import Settings
from tests.conftest import MakeClient
from tests.harness.asgi import running
from tests.http_client import ASGIWebSocketTransport, AsyncClient, Response

SECRET = "correct horse battery staple"


class OutOfStockError(ProblemError):
    status_code = status.HTTP_409_CONFLICT
    type = "urn:problem-type:out-of-stock"
    title = "The item is out of stock"


class Credentials(BaseModel, extra="forbid"):
    password: Annotated[SecretStr, Field(min_length=100)]
    cost: float = Field(default=0, le=1)


@pytest.fixture
def endpoints(app: FastAPI) -> None:
    """Endpoints that fail."""

    @app.get("/out-of-stock", responses=responses_of(OutOfStockError))
    async def order() -> None:
        raise OutOfStockError(headers={"Retry-After": "60"})

    @app.get("/members")
    async def raise_members() -> None:
        raise HTTPException(status.HTTP_402_PAYMENT_REQUIRED, {"balance": 30})

    @app.get("/moved")
    async def move() -> None:
        raise HTTPException(status.HTTP_307_TEMPORARY_REDIRECT, headers={"Location": "/"})

    @app.get("/broken")
    async def fail() -> None:
        raise ZeroDivisionError(SECRET)

    @app.post("/credentials", responses={404: {"description": "?", "content": {"text/plain": {}}}})
    async def log_in(data: Credentials) -> None:
        pass

    @app.get("/safe", dependencies=[Depends(HTTPBearer())])
    async def open_safe() -> None:
        pass


@pytest.fixture
def problem_details(app: FastAPI, endpoints: None) -> None:
    """Turns on problem details, as app/main.py does."""
    add_problem_details(app)


def problem_of(response: Response) -> dict[str, Any]:
    """Return the problem details of a response; check that they match their declaration."""
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    is_invalid = response.status_code == status.HTTP_422_UNPROCESSABLE_CONTENT
    model = ValidationProblemDetails if is_invalid else ProblemDetails
    model.model_validate(problem)
    assert problem["status"] == response.status_code
    assert problem.pop("request_id") == response.headers["X-Request-ID"]
    return problem


@pytest.mark.usefixtures("problem_details")
async def test_error_of_a_feature_is_a_problem(client: AsyncClient) -> None:
    response = await client.get("/out-of-stock")
    assert problem_of(response) == {
        "type": "urn:problem-type:out-of-stock",
        "title": "The item is out of stock",
        "status": 409,
        "instance": "/out-of-stock",
    }
    assert response.headers["Retry-After"] == "60"


@pytest.mark.usefixtures("endpoints")
async def test_error_of_a_feature_is_a_detail_without_problem_details(client: AsyncClient) -> None:
    response = await client.get("/out-of-stock")
    assert response.status_code == 409
    assert response.json() == {"detail": "The item is out of stock"}


@pytest.mark.usefixtures("problem_details")
@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nowhere", {"title": "Not Found", "status": 404}),
        ("PUT", "/livez", {"title": "Method Not Allowed", "status": 405}),
        ("GET", "/safe", {"title": "Unauthorized", "status": 401, "detail": "Not authenticated"}),
        ("GET", "/members", {"title": "Payment Required", "status": 402, "balance": 30}),
    ],
)
async def test_error_of_the_framework_is_a_problem(
    client: AsyncClient, method: str, path: str, expected: dict[str, Any]
) -> None:
    response = await client.request(method, path)
    assert problem_of(response) == {"type": "about:blank", "instance": path, **expected}


@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}])
async def test_body_that_is_too_large_is_a_problem(
    settings: Settings, headers: dict[str, str]
) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {}

    app = build_app(settings, lifespan, max_body_size=10)
    add_problem_details(app)

    @app.post("/texts")
    async def take_text(text: Annotated[str, Body()]) -> str:
        return text

    transport = ASGIWebSocketTransport(app=app)
    async with running(app), AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/texts", json="short")).json() == "short"
        response = await client.post("/texts", content=b'"%s"' % bytes(20), headers=headers)
    assert problem_of(response)["title"] == "Content Too Large"


@pytest.mark.usefixtures("problem_details")
async def test_redirect_is_no_problem(client: AsyncClient) -> None:
    response = await client.get("/moved")
    assert (response.status_code, response.headers["Location"]) == (307, "/")


@pytest.mark.usefixtures("problem_details")
async def test_unexpected_error_gives_nothing_away(make_client: MakeClient) -> None:
    client = await make_client(raise_app_exceptions=False)
    assert problem_of(await client.get("/broken")) == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "instance": "/broken",
    }


async def test_application_of_another_make_has_no_request_id(anyio_backend: str) -> None:
    app = FastAPI()
    add_problem_details(app)
    transport = ASGIWebSocketTransport(app=app)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/nowhere")).json() == {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "instance": "/nowhere",
        }


@pytest.mark.usefixtures("problem_details")
async def test_unexpected_error_is_raised_for_the_server_to_log(client: AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):
        await client.get("/broken")


UNPRINTABLE = [
    b'{"password": NaN}',
    b'{"password": "", "cost": 1e999}',
    b'{"password": "\\ud800"}',
    b'{"password": "", "\\ud800": 1}',
    b'{"password": ' + b"[" * 600 + b"]" * 600 + b"}",
]


@pytest.mark.usefixtures("problem_details")
@pytest.mark.parametrize(
    "body", [json.dumps({"password": SECRET}).encode(), json.dumps([SECRET]).encode(), *UNPRINTABLE]
)
async def test_invalid_request_is_not_repeated(client: AsyncClient, body: bytes) -> None:
    response = await client.post(
        "/credentials", content=body, headers={"Content-Type": "application/json"}
    )
    assert {frozenset(error) for error in problem_of(response)["errors"]} == {
        frozenset({"loc", "msg", "type"})
    }
    assert SECRET not in response.text


@pytest.mark.usefixtures("endpoints")
@pytest.mark.parametrize("body", UNPRINTABLE)
async def test_unprintable_request_is_refused_without_problem_details(
    client: AsyncClient, body: bytes
) -> None:
    response = await client.post(
        "/credentials", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "body"


async def test_request_that_is_too_deep_to_print_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    part = {"loc": ("body",), "msg": "Too deep", "type": "deep"}
    error = RequestValidationError([{**part, "input": deep}])
    response = await answer_as_fastapi_does(Request({"type": "http"}), error)
    assert json.loads(bytes(response.body)) == {"detail": [{**part, "loc": ["body"]}]}


@pytest.mark.usefixtures("problem_details")
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_body_that_is_not_text_is_a_problem(client: AsyncClient, content_type: str) -> None:
    response = await client.post(
        "/credentials", content=b"\xff", headers={"Content-Type": content_type}
    )
    assert problem_of(response)["status"] in {400, 422}


def references(responses: dict[str, Any]) -> dict[str, str]:
    """Return the schema's name for each declared error."""
    return {
        code: response["content"]["application/problem+json"]["schema"]["$ref"].split("/")[-1]
        for code, response in responses.items()
        if "application/problem+json" in response.get("content", {})
    }


@pytest.mark.usefixtures("problem_details")
async def test_problems_are_declared(app: FastAPI) -> None:
    document = app.openapi()
    declared = {
        path: references(operation["responses"])
        for path, operations in document["paths"].items()
        for operation in operations.values()
    }
    problem, invalid = "ProblemDetails", "ValidationProblemDetails"
    assert declared["/out-of-stock"] == {"409": problem, "default": problem}
    assert declared["/credentials"] == {"400": problem, "422": invalid, "default": problem}
    assert declared["/safe"] == {"401": problem, "default": problem}
    assert declared["/readyz"] == {"503": problem, "default": problem}
    conflict = document["paths"]["/out-of-stock"]["get"]["responses"]["409"]
    assert conflict["description"] == OutOfStockError.title
    assert {problem, invalid, "InvalidPart"} <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in json.dumps(document)
    assert app.openapi() is document


def test_webhooks_keep_the_schemas_that_they_use() -> None:
    schemas = {"ValidationError": {"type": "object"}}
    declare_problems({"paths": {}, "webhooks": {}, "components": {"schemas": schemas}})
    assert "ValidationError" in schemas
