"""What the log says about an exception that no handler catches."""

import json
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from app.core.tracebacks import full_traceback, short_traceback
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
async def test_short_traceback_leaves_out_what_is_installed(
    app: FastAPI, client: AsyncClient, endpoint: Callable[[], None]
) -> None:
    app.add_api_route("/broken", endpoint)
    with pytest.raises((RuntimeError, ExceptionGroup)) as raised:
        await client.get("/broken")
    exc_info = (raised.type, raised.value, raised.tb)
    assert "routing.py" in full_traceback(exc_info)
    assert "routing.py" not in short_traceback(exc_info)
    for function in ("read_broken", "raw_decode"):  # our own, and the one that raised
        assert f", in {function}\n" in short_traceback(exc_info)
