"""What the log says of an exception that no handler takes."""

import json
import logging
from collections.abc import Callable
from traceback import format_exception

import pytest
from fastapi import FastAPI

from app.core.tracebacks import shorten
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
