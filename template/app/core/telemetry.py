"""Traces and metrics by OpenTelemetry, if its variables name a collector."""

import os
from typing import Any

from dotenv import dotenv_values
from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, ExecutionContext
from starlette.types import Scope

from app.core.config import env_file
from app.core.requests import PROBES

tracer = trace.get_tracer(__name__)


def is_probe(scope: Scope) -> bool:
    """Return whether a request is a health probe; these are too many to trace."""
    return scope["path"] in PROBES


# FastAPI imports the SDK only if OTEL_EXPORTER_OTLP_ENDPOINT is set. Logs are not exported: on
# stderr, their secrets are masked.
TELEMETRY: TelemetryConfig = {"auto_configure": True, "logs": False, "exclude": is_probe}


def read_telemetry_variables() -> None:
    """Read the variables of OpenTelemetry from `.env` too, as for settings."""
    file = env_file()
    for name, value in (dotenv_values(file) if file else {}).items():
        if name.startswith("OTEL_") and value:
            os.environ.setdefault(name, value)


def trace_statements(engine: Engine) -> None:
    """Trace each statement of `engine`, without its parameters, if a tracer is configured."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    event.listen(engine, "before_cursor_execute", begin_span)
    event.listen(engine, "after_cursor_execute", end_span)
    event.listen(engine, "handle_error", fail_span)


def begin_span(
    connection: Connection, _: object, statement: str, __: object, context: Any, ___: bool
) -> None:
    """Begin the span of a statement, with the attributes of the semantic conventions."""
    operation = statement.split(maxsplit=1)[0].upper()
    context.span = tracer.start_span(
        operation,
        kind=trace.SpanKind.CLIENT,
        attributes={
            "db.system.name": connection.dialect.name,
            "db.operation.name": operation,
            "db.query.text": statement,
        },
    )


def end_span(_: Connection, __: object, ___: str, ____: object, context: Any, _____: bool) -> None:
    """End the span of a statement."""
    context.span.end()


def fail_span(error: ExceptionContext) -> None:
    """End the span of a failed statement, without the error message, which can contain values."""
    context: ExecutionContext | None = error.execution_context
    span: trace.Span | None = getattr(context, "span", None)
    if span is not None:
        span.set_attribute("error.type", type(error.original_exception).__qualname__)
        span.set_status(trace.StatusCode.ERROR)
        span.end()
