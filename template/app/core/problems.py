"""Turn all errors into problem details.

https://www.rfc-editor.org/rfc/rfc9457
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from http.client import responses as phrases
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, status
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema, models_json_schema
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = "application/problem+json"
PLAIN_TEXT = (b"content-type", b"text/plain; charset=utf-8")
# The plain-text responses of max_body_size, TrustedHostMiddleware and CORSMiddleware, by status.
REFUSALS = {
    413: re.compile(b"Content Too Large"),
    400: re.compile(b"Invalid host header|Disallowed CORS .*"),
}
SCHEMAS = "#/components/schemas/"
EMPTY: Mapping[str, object] = {}
# Older Python versions do not name these two as RFC 9110 does.
TITLES = phrases | {413: "Content Too Large", 422: "Unprocessable Content"}


class ProblemError(HTTPException):
    """The base class of a feature's own errors. Each class defines its status, type and title.

    Programs rely on `type`, so keep it when you change the title::

        class OutOfStockError(ProblemError):
            status_code = status.HTTP_409_CONFLICT
            type = "urn:problem-type:out-of-stock"
            title = "The item is out of stock"
    """

    status_code: int
    type: str
    title: str

    def __init__(self, detail: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(self.status_code, detail or self.title, headers)


def responses_of(*errors: type[ProblemError]) -> dict[int | str, dict[str, Any]]:
    """Return the errors as `responses`: `@router.post(..., responses=responses_of(...))`."""
    titles = defaultdict(list)
    for error in errors:
        titles[error.status_code].append(error.title)
    return {code: {"description": "; ".join(said)} for code, said in titles.items()}


class ProblemDetails(BaseModel):
    """The body of an error response."""

    type: str
    title: str
    status: int
    detail: str | SkipJsonSchema[None] = None
    instance: str
    request_id: str | SkipJsonSchema[None] = None


class InvalidPart(BaseModel):
    """A part of a request that is not valid: where it is and why, without its value."""

    loc: list[str | int]
    msg: str
    type: str


class ValidationProblemDetails(ProblemDetails):
    """The body of a 422 response."""

    errors: list[InvalidPart]


class ProblemResponse(JSONResponse):
    """A response with problem details."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """Escape non-ASCII characters: field names can contain lone surrogates."""
        return json.dumps(content).encode("ascii")


def add_problem_details(app: FastAPI) -> None:
    """Answer all errors of `app` with problem details; declare them in its OpenAPI document."""
    app.add_exception_handler(StarletteHTTPException, answer_http_exception)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, answer_invalid_request)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, answer_unexpected_error)
    make_stack, make_document = app.build_middleware_stack, app.openapi

    def build_middleware_stack() -> ASGIApp:
        return RefusalProblems(make_stack())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            declare_problems(make_document())
        return make_document()

    app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]
    app.openapi = openapi  # type: ignore[method-assign]


def problem(
    request: HTTPConnection,
    status_code: int,
    members: Mapping[str, object] = EMPTY,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Return the problem response for a status code, with `members`."""
    content = {
        "type": "about:blank",
        "title": TITLES.get(status_code, "Error"),
        **members,
        "status": status_code,
        "instance": request.url.path,
    }
    if "request_id" in request.scope:
        content["request_id"] = request.scope["request_id"]
    if content.get("detail") == content["title"]:
        del content["detail"]
    return ProblemResponse(content, status_code, headers)


async def answer_http_exception(request: Request, error: StarletteHTTPException) -> Response:
    """Answer an HTTPException. If its `detail` is a dict, its items become members."""
    if error.status_code < status.HTTP_400_BAD_REQUEST:  # a redirect, say
        return await http_exception_handler(request, error)
    detail: object = error.detail
    members = dict(detail) if isinstance(detail, dict) else {"detail": str(detail)}
    if isinstance(error, ProblemError):
        members |= {"type": error.type, "title": error.title}
    return problem(request, error.status_code, members, error.headers)


async def answer_invalid_request(request: Request, error: RequestValidationError) -> Response:
    """Answer 422, without the input, which can be a secret."""
    members = {"errors": invalid_parts(error)}
    return problem(request, status.HTTP_422_UNPROCESSABLE_CONTENT, members)


async def answer_unexpected_error(request: Request, _: Exception) -> Response:
    """Answer 500, without details: the server logs them."""
    return problem(request, status.HTTP_500_INTERNAL_SERVER_ERROR)


class RefusalProblems:
    """Replaces plain-text responses of the framework's middleware with problems."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Replace the responses in REFUSALS, and pass on all others."""
        start: Message | None = None  # of a response that may be a refusal
        is_replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal start, is_replaced
            if PLAIN_TEXT in message.get("headers", ()) and message["status"] in REFUSALS:
                start = message
            elif start is not None:
                text = message.get("body", b"")
                is_replaced = bool(REFUSALS[start["status"]].fullmatch(text))
                if is_replaced:
                    response = refusal(HTTPConnection(scope), start, text.decode())
                    await response(scope, receive, send)
                else:
                    await send(start)
                    await send(message)
                start = None
            elif not is_replaced:
                await send(message)

        await self._app(scope, receive, send_problem)


def refusal(request: HTTPConnection, start: Message, text: str) -> ProblemResponse:
    """Return the problem for a plain-text response, with its other headers."""
    headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    kept = {name: headers[name] for name in headers.keys() - {"content-type", "content-length"}}
    return problem(request, start["status"], {"detail": text}, kept)


async def answer_as_fastapi_does(request: Request, error: RequestValidationError) -> Response:
    """Answer 422, without the input if JSON cannot represent it, such as NaN."""
    try:
        return await request_validation_exception_handler(request, error)
    except (ValueError, RecursionError):
        body = json.dumps({"detail": invalid_parts(error)})
        return Response(body, status.HTTP_422_UNPROCESSABLE_CONTENT, media_type="application/json")


def invalid_parts(error: RequestValidationError) -> list[dict[str, Any]]:
    """Return the invalid parts of a request; see InvalidPart."""
    return [{name: each[name] for name in InvalidPart.model_fields} for each in error.errors()]


def declare_problems(document: dict[str, Any]) -> None:
    """Declare the problems of features and of FastAPI in an OpenAPI document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            declared = operation["responses"]
            if "requestBody" in operation:
                declared.setdefault("400", {"description": "The body cannot be read"})
            if "security" in operation:
                declared.setdefault("401", {"description": "Not authenticated"})
            declared.setdefault("default", {"description": "Any other problem"})
            for code, response in declared.items():
                if code[0] in "45d":
                    declare_problem(response)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models = (ProblemDetails, ValidationProblemDetails)
    schemas |= models_json_schema(
        [(model, "serialization") for model in models], ref_template=f"{SCHEMAS}{{model}}"
    )[1]["$defs"]
    if "webhooks" not in document:
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)


def declare_problem(response: dict[str, Any]) -> None:
    """Declare the body of an error response, unless the feature has declared it."""
    content = response.setdefault("content", {})
    schema = content.get("application/json", {}).get("schema")
    model: type[ProblemDetails] = ProblemDetails
    if schema == {"$ref": f"{SCHEMAS}HTTPValidationError"}:
        content.clear()
        model = ValidationProblemDetails
    if not content:
        content[MEDIA_TYPE] = {"schema": {"$ref": f"{SCHEMAS}{model.__name__}"}}
