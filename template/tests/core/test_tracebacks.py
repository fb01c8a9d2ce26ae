"""What the log says of an exception that no handler takes."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from traceback import format_exception

import pytest
from fastapi import FastAPI

from app.core.application import build_app
from app.core.tracebacks import shorten
from app.settings import Settings
from tests.harness.asgi import running
from tests.http_client import AsyncClient


def read_broken() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        raise RuntimeError("not readable") from error


def read_all() -> None:
    try:
        read_broken()
    except RuntimeError as error:
        raise ExceptionGroup("one of many", [error]) from None


@pytest.mark.parametrize("endpoint", [read_broken, read_all])
async def test_log_leaves_out_what_is_installed(
    app: FastAPI, client: AsyncClient, endpoint: Callable[[], None]
) -> None:
    app.add_api_route("/broken", endpoint)
    with pytest.raises((RuntimeError, ExceptionGroup)) as raised:
        await client.get("/broken")
    error = raised.value
    record = logging.LogRecord(
        "uvicorn.error", logging.ERROR, __file__, 1, "Failed", None, (type(error), error, None)
    )
    assert shorten(record)
    logged = logging.Formatter().format(record)
    assert "routing.py" in "".join(format_exception(error))
    assert "routing.py" not in logged
    for function in ("read_broken", "raw_decode"):  # what is ours, and what has raised
        assert f", in {function}\n" in logged


def test_record_without_an_exception_stays_as_it_is() -> None:
    record = logging.LogRecord("uvicorn.error", logging.INFO, __file__, 1, "Started", None, None)
    assert shorten(record)
    assert record.exc_text is None


@pytest.mark.parametrize("log_level", ["DEBUG", "INFO"])
async def test_debug_log_has_all_frames(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, log_level: str
) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {}

    logger = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(logger, "filters", [])
    async with running(build_app(settings.model_copy(update={"log_level": log_level}), lifespan)):
        assert (shorten in logger.filters) == (log_level != "DEBUG")
