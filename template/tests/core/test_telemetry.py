"""Spans for SQL: without parameters, and only if something records them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core import telemetry
from app.core.application import build_app
from app.core.database import create_engine
from app.core.telemetry import begin_span, is_probe, read_telemetry_variables, trace_statements
from app.settings import Settings
from tests.harness.asgi import running
from tests.harness.isolation import Isolation


@pytest.fixture
async def own_engine(db_engine: AsyncEngine, isolation: Isolation) -> AsyncIterator[AsyncEngine]:
    """An engine for this test alone."""
    engine = create_engine(db_engine.url.render_as_string(hide_password=False))
    yield engine
    await engine.dispose()


COMMITTED = pytest.mark.committed  # for tests with their own engine


async def spans_of(engine: AsyncEngine, *statements: str) -> list[ReadableSpan]:
    """Run statements in a trace, and return their spans, without those of BEGIN."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with (
        patch.object(trace, "get_tracer_provider", return_value=provider),
        patch.object(telemetry, "tracer", tracer),
    ):
        trace_statements(engine.sync_engine)
        with tracer.start_as_current_span("request"):
            for statement in statements:
                async with engine.connect() as connection:
                    with suppress(SQLAlchemyError):
                        await connection.execute(text(statement), {"secret": "hunter2"})
    return [span for span in exporter.get_finished_spans() if span.name == "SELECT"]


@COMMITTED
async def test_statement_is_a_span_of_the_request(own_engine: AsyncEngine) -> None:
    (span,) = await spans_of(own_engine, "SELECT 1 WHERE '' <> :secret")
    attributes = dict(span.attributes or {})
    assert attributes["db.system.name"] == own_engine.dialect.name
    assert attributes["db.operation.name"] == "SELECT"
    assert "hunter2" not in span.to_json()
    assert span.parent is not None


@COMMITTED
async def test_statement_that_fails_is_a_span_with_an_error(own_engine: AsyncEngine) -> None:
    (span,) = await spans_of(own_engine, "SELECT :secret FROM nowhere")
    assert not span.status.is_ok
    assert "error.type" in (span.attributes or {})
    assert "hunter2" not in span.to_json()


@COMMITTED
async def test_connection_that_fails_is_reported_as_it_is(own_engine: AsyncEngine) -> None:
    dialect = own_engine.dialect
    away = dialect.loaded_dbapi.OperationalError("away")
    failing = patch.object(dialect, "connect", side_effect=away)
    with failing, pytest.raises(SQLAlchemyError, match="away"):
        await spans_of(own_engine, "SELECT 1")


async def test_nothing_listens_where_nobody_records(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {}

    async with running(build_app(settings, lifespan)) as running_app:
        engine = running_app.engine.sync_engine
        assert not event.contains(engine, "before_cursor_execute", begin_span)


def test_probes_are_not_traced() -> None:
    assert is_probe({"path": "/livez"})
    assert not is_probe({"path": "/things"})


def test_variables_come_from_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("OTEL_SERVICE_NAME=things\nOTEL_EMPTY=\nOTHER=1\nOTEL_SET=file\n")
    with patch.dict("os.environ", {"OTEL_SET": "environment"}) as environ:
        monkeypatch.setattr(telemetry, "env_file", lambda: None)
        read_telemetry_variables()
        assert "OTEL_SERVICE_NAME" not in environ
        monkeypatch.setattr(telemetry, "env_file", lambda: file)
        read_telemetry_variables()
        assert environ["OTEL_SERVICE_NAME"] == "things"
        assert environ["OTEL_SET"] == "environment"
        assert not {"OTEL_EMPTY", "OTHER"} & environ.keys()
