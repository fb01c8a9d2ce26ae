"""Call each operation of the OpenAPI document with valid and invalid input.

Schemathesis runs the application in its own event loop:
https://schemathesis.readthedocs.io/en/stable/guides/pytest/
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Err
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import positive_data_acceptance, status_code_conformance
from schemathesis.specs.openapi.schemas import OpenApiSchema

Contract = OpenApiSchema
Operation = APIOperation[Any, Any, Any, Any]

# The same examples in each run, and few, so that it is fast.
BOUNDED = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
UNDECLARED = """\
{operation} returned a response that the OpenAPI document does not declare:

{answers}

Declare it on the endpoint: @router.{method}(..., responses={{{responses}}}).
For your own exceptions, use responses=responses_of(...) from app/core/problems.py.\
"""


@contextmanager
def contract_of(app: FastAPI) -> Iterator[Contract]:
    """Start `app` and load its OpenAPI document."""
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    shutdown_lifespans()


def operations(contract: Contract) -> list[Operation]:
    """Return all operations except event streams, which may not end."""
    found = []
    for result in contract.get_all_operations():
        if isinstance(result, Err):
            raise result.err()
        if not is_event_stream(result.ok()):
            found.append(result.ok())
    return found


def is_event_stream(operation: Operation) -> bool:
    """Return whether an operation can respond with server-sent events."""
    responses: dict[str, Any] = operation.definition.raw["responses"]
    return any("text/event-stream" in each.get("content", {}) for each in responses.values())


def check_operation(operation: Operation, headers: dict[str, str]) -> None:
    """Call an operation, and fail if the document does not declare a response.

    `default` does not count: it is for the responses that all operations have in common.
    """
    undeclared: dict[int, str] = {}
    allowed, forbidden = map(operation.as_strategy, GenerationMode)

    @BOUNDED
    @given(case=st.one_of(allowed, forbidden))
    def call(case: Case[Any]) -> None:
        response = case.call(headers=headers)
        code = response.status_code
        if not {str(code), f"{code // 100}XX"}.intersection(operation.responses.status_codes):
            undeclared.setdefault(code, case.as_curl_command())
        case.validate_response(
            response,
            headers=headers,
            # A value in the right format can still be refused, such as addresses at `.test`.
            excluded_checks=[positive_data_acceptance, status_code_conformance],
        )

    call()
    if undeclared:
        said = UNDECLARED.format(
            operation=operation.label,
            answers="\n".join(f"    {code}: {curl}" for code, curl in sorted(undeclared.items())),
            method=operation.method,
            responses=", ".join(f'{code}: {{"description": "..."}}' for code in sorted(undeclared)),
        )
        pytest.fail(said, pytrace=False)
