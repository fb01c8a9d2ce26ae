"""The log has one format for all loggers, no secrets, and no forged lines."""

import json
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from structlog.contextvars import bound_contextvars

from app.core.application import build_app
from app.core.config import ServiceSettings
from app.core.logs import MASK, configure_logging, configure_structlog, make_formatter
from app.settings import Settings

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.q7Vr4BDvdVtPzXcJxJxJxA"


def settings_of(environment: str, log_level: str = "INFO") -> ServiceSettings:
    values: dict[str, Any] = {"environment": environment, "log_level": log_level}
    return ServiceSettings.model_construct(**values)


class Log:
    """A separate log, and its contents."""

    def __init__(self, environment: str = "production", log_level: str = "INFO") -> None:
        self._stream = StringIO()
        handler = logging.StreamHandler(self._stream)
        formatter = make_formatter(settings_of(environment, log_level), self._stream)
        handler.setFormatter(formatter)
        self.logger = logging.Logger("app.things")  # noqa: LOG001 (nobody else uses it)
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


ENVIRONMENTS = ["development", "test", "staging", "production"]


def test_line_says_who_when_and_what() -> None:
    log = Log()
    with bound_contextvars(request_id="a1"):
        log.logger.warning("%s are left", 2, extra={"thing_id": 7, "tags": ["old"], "seen": {1}})
    (line,) = log.lines
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "warning",
        "event": "2 are left",
        "logger": "app.things",
        "thing_id": 7,
        "tags": ["old"],
        "seen": [1],
        "request_id": "a1",
    }


def test_line_is_for_people_while_the_service_is_developed() -> None:
    log = Log("development")
    log.logger.warning("%s are left", 2, extra={"thing_id": 7})
    assert " [warning  ] 2 are left" in log.text
    assert "[app.things] thing_id=7\n" in log.text
    assert "\x1b" not in log.text  # colors are for terminals


def test_structlog_writes_the_same_lines() -> None:
    log = Log()
    with unconfigured():
        configure_structlog()
        configure_structlog()
        logger = structlog.stdlib.BoundLogger(log.logger, structlog.get_config()["processors"], {})
        logger.info("%s are left", 2, thing_id=7, stack_info=True)
    (line,) = log.lines
    assert (line["event"], line["thing_id"], line["level"]) == ("2 are left", 7, "info")
    assert "test_logs.py" in line["stack"]


def test_structlog_that_is_configured_stays_so() -> None:
    with unconfigured():
        structlog.configure(processors=[])
        configure_structlog()
        assert structlog.get_config()["processors"] == []


@pytest.mark.parametrize("log_level", ["INFO", "DEBUG"])
def test_traceback_is_short_but_for_debug(log_level: str) -> None:
    log = Log(log_level=log_level)
    try:
        json.loads("{")
    except ValueError:
        log.logger.exception("Not readable\n", stack_info=True)
    (line,) = log.lines
    assert line["event"] == "Not readable"
    assert "in raw_decode" in line["exception"]
    assert ("in loads" in line["exception"]) == (log_level == "DEBUG")
    assert "test_logs.py" in line["stack"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    "secret",
    [
        "ada@example.com",
        "ada.lovelace+news@mail.example.co.uk",
        "ada%40example.com",
        "æda@exämple.com",
        TOKEN,
        "bearer 0123456789abcdef",
        "$scrypt$ln=16,r=8,p=1$c29tZXNhbHQ$aGFzaA+/",
        "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
        "driver://app:hunter2@localhost/app",
    ],
)
def test_what_looks_like_a_secret_is_masked(environment: str, secret: str) -> None:
    log = Log(environment)
    bare = secret.removeprefix("driver://").removesuffix("@localhost/app")
    try:
        raise ValueError(f"Key (email)=({secret}) already exists.")
    except ValueError as error:
        log.logger.exception("Say '%s'", secret, extra={"a": secret, "b": [{"c": secret}]})
        log.logger.error("Say %r", error, extra={"error": error, "key": (secret,), secret: 1})
    assert bare not in log.text
    assert json.dumps(bare)[1:-1] not in log.text
    assert log.text.count(MASK) >= 8


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T22:31:56.674+00:00",
        "d5d8000ebe2348d189cc36bc0321824d",
        "GET /things/{thing_id}",
        '  File "/srv/app/main.py", line 7, in create_app',
        "    @router.get('/things')",
        "the bearer of this",
        "http://0.0.0.0:8000 (Press CTRL+C to quit)",
        "$100",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    log = Log()
    log.logger.info(text)
    assert log.lines[0]["event"] == text.rstrip()


def test_what_is_called_a_secret_is_masked() -> None:
    log = Log()
    names = {"password": "hunter2", "nested": {"API-Key": ["hunter2"], "api_key": ["hunter2"]}}
    log.logger.info("", extra={**names, "token": SecretStr("hunter2"), "authorization": None})
    log.logger.info("", extra={"max_tokens": 7, "is_secret": True})
    first, second = log.lines
    assert first["password"] == first["token"] == first["nested"]["api_key"] == MASK
    assert first["authorization"] is None
    assert (second["max_tokens"], second["is_secret"]) == (7, True)


BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[2K", "\0"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("line_break", BREAKS)
def test_nobody_forges_a_line(environment: str, line_break: str) -> None:
    log = Log(environment)
    forged = f"lamp{line_break}2026-11-21T22:31:56.674+00:00 [info     ] forged"
    log.logger.info("Say %s", forged, extra={"a": forged, "b": [forged], forged: 1})
    with bound_contextvars(request_id=forged):
        log.logger.info(forged)
    assert len(log.text.splitlines()) == 2
    assert not set(log.text) & set(line_break.removesuffix("[2K")) - {"\n"}
    try:
        raise ValueError(forged)
    except ValueError:
        log.logger.exception("")
    others = log.text.splitlines()[3:]
    assert all(line.startswith("    ") for line in others)
    assert len(others) == 0 or environment in {"development", "test"}


def test_text_that_utf8_cannot_hold_is_escaped() -> None:
    log = Log()
    log.logger.info("\ud800")
    assert "\\ud800" in log.text


def test_event_cannot_pretend_to_be_another() -> None:
    log = Log()
    log.logger.info("", extra={"level": "error", "timestamp": "never", "logger": "app.other"})
    assert (log.lines[0]["level"], log.lines[0]["logger"]) == ("info", "app.things")


@pytest.mark.parametrize("beginning", ["", "://", "eyJ", "bearer "])
@pytest.mark.parametrize("part", ["a", "a:", "a@", "a.", "eyJ"])
def test_mask_takes_no_longer_for_text_that_never_ends(beginning: str, part: str) -> None:
    log = Log()
    log.logger.info("%s%s", beginning, part * 50_000)  # a quadratic pattern would take minutes
    assert len(log.lines) == 1


LOGGERS = ["app", "app.things", "uvicorn", "uvicorn.error", "sqlalchemy", "a.driver"]


@contextmanager
def unconfigured() -> Iterator[None]:
    """Reset logging and structlog, as in a new process; restore them afterwards."""
    is_configured, before = structlog.is_configured(), structlog.get_config()
    with pytest.MonkeyPatch.context() as patch:
        structlog.reset_defaults()
        for logger in map(logging.getLogger, ["root", "uvicorn.access", *LOGGERS]):
            for name in ("handlers", "filters"):
                patch.setattr(logger, name, [])
            for name in ("level", "propagate"):
                patch.setattr(logger, name, getattr(logger, name))
        try:
            yield
        finally:
            logging.captureWarnings(False)
            structlog.reset_defaults()
            if is_configured:
                structlog.configure(**before)
    logging.getLogger().setLevel(logging.getLogger().level)  # clears the cache of enabled levels


def log_everywhere(settings: ServiceSettings) -> None:
    """Configure logging, and log with all loggers."""
    for name in ("uvicorn", "uvicorn.access"):  # as uvicorn does
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers = [logging.StreamHandler()]
    configure_logging(settings)
    configure_logging(settings)  # for another application
    for name in LOGGERS:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s at %s", name, logging.getLevelName(level))
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "1", "/?token=x")
    logging.getLogger("uvicorn.error").info("connection open")
    warnings.warn("a warning", stacklevel=1)


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize(
    ("log_level", "expected"),
    [
        ("WARNING", {"WARNING": {*LOGGERS}}),
        (
            "DEBUG",
            {
                "DEBUG": {"app", "app.things"},
                "INFO": {"app", "app.things", "uvicorn", "uvicorn.error"},
                "WARNING": {*LOGGERS},
            },
        ),
    ],
)
def test_all_write_to_one_stream_and_drivers_do_not_flood_it(
    capsys: pytest.CaptureFixture[str],
    log_level: str,
    expected: dict[str, set[str]],
) -> None:
    with unconfigured():
        log_everywhere(settings_of("staging", log_level))
        assert not logging.getLogger("uvicorn.access").hasHandlers()  # so uvicorn writes no lines
    *said, warned = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    wanted = {f"{name} at {level}" for level, names in expected.items() for name in names}
    assert set(said) == wanted
    assert len(said) == len(wanted)
    assert "UserWarning: a warning" in warned


async def test_first_lines_of_the_server_are_in_the_log_too(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {}

    with unconfigured():
        build_app(settings, lifespan)
        assert logging.getLogger().handlers == []
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        build_app(settings, lifespan)
        assert len(logging.getLogger().handlers) == 1


def test_logging_that_is_configured_stays_so() -> None:
    handler = logging.NullHandler()
    with unconfigured():
        logging.getLogger().addHandler(handler)
        configure_logging(settings_of("production"))
        assert logging.getLogger().handlers == [handler]
