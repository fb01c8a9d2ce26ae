"""Logging: everything goes to stderr, in one format.

The format is JSON in staging and production, and text elsewhere. `logging` and structlog produce
the same lines: with the request's id, without secrets, and without line breaks.
"""

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import structlog
from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer
from structlog.processors import ExceptionRenderer, JSONRenderer
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

from app.core.config import ServiceSettings
from app.core.tracebacks import full_traceback, short_traceback

MASK = "[masked]"
EMAIL_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+-]++(?:@|%40)[\w-]++(?:\.[\w-]++)+")
# Each pattern begins with characters that are rare in text, which makes the search fast.
SECRETS = re.compile(
    r"""
      eyJ (?<![\w-]eyJ) [\w-]++ \.[\w-]++ (?:\.[\w-]*+)?  # a JSON Web Token
    | [Bb][Ee][Aa][Rr][Ee][Rr]\s+ [\w.~+/=-]{8,}           # any other token
    | \$[\w-]++\$ [\w$=,./+-]{16,}                         # a password hash
    | :// [^\s/@:]*+ : [^\s/@]+ @                          # user and password in a URL
    """,
    re.VERBOSE,
)
SECRET_NAMES = re.compile("password|secret|token|authorization|cookie|api_?key", re.IGNORECASE)
# Characters that start a new line or move the cursor of a terminal.
CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
MANY_LINES = {"exception", "stack"}
# uvicorn's lines about WebSockets contain the query. RequestMiddleware logs each of them instead.
WEBSOCKET_LINES = ('%s - "WebSocket %s"', "connection open", "connection closed")


def configure_logging(settings: ServiceSettings) -> None:
    """Log the application, its libraries and uvicorn to stderr.

    Like logging.basicConfig, it does nothing if logging is already configured.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(make_formatter(settings, handler.stream))
    root.addHandler(handler)
    # Of libraries, log only warnings and errors: they log much else, with URLs and values.
    level = logging.getLevelNamesMapping()[settings.log_level]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("app").setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        server = logging.getLogger(name)
        server.handlers.clear()
        server.setLevel(max(level, logging.INFO))
        server.propagate = name != "uvicorn.access"  # app.core.requests logs requests instead
    logging.getLogger("uvicorn.error").addFilter(is_no_websocket_line)
    logging.captureWarnings(True)


def configure_structlog() -> None:
    """Send structlog's events to `logging`, unless structlog is already configured."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def make_formatter(settings: ServiceSettings, stream: TextIO) -> logging.Formatter:
    """Return the formatter for `stream`, depending on the environment."""
    is_debug = settings.log_level == "DEBUG"
    renderers: list[Processor] = (
        [JSONRenderer()]
        if settings.is_deployed
        else [keep_in_line, ConsoleRenderer(colors=stream.isatty(), sort_keys=False)]
    )
    return ProcessorFormatter(
        foreign_pre_chain=[ExtraAdder()],
        processors=[
            merge_contextvars,
            say_when_and_who,
            ExceptionRenderer(full_traceback if is_debug else short_traceback),
            mask_values,
            *renderers,
        ],
    )


def say_when_and_who(_: object, __: str, event: EventDict) -> EventDict:
    """Put the time, level and logger of the record first."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    event.pop("color_message", None)  # uvicorn's colored copy of the message
    if "stack_info" in event:
        event["stack"] = event.pop("stack_info")
    first: EventDict = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": str(event["event"]).rstrip(),
        "logger": record.name,
    }
    return {**first, **event, **first}  # again, so that the event cannot overwrite them


def mask_values(_: object, __: str, event: EventDict) -> EventDict:
    """Mask values that look like secrets or are named like one."""
    return mask_mapping(event)


def mask_mapping(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Mask the values of a mapping."""
    masked = {}
    for name, value in values.items():
        shown, is_secret = read_name(str(name))
        # Numbers are not secrets: max_tokens, for example.
        hidden = is_secret and not (value is None or isinstance(value, int | float))
        masked[shown] = MASK if hidden else mask(value)
    return masked


def mask_text(text: str) -> str:
    """Return a text in which everything that looks like a secret is masked."""
    if "@" in text or "%40" in text:
        text = EMAIL_ADDRESS.sub(MASK, text)
    return SECRETS.sub(MASK, text)


def mask(value: object) -> Any:
    """Return a value for JSON in which everything that looks like a secret is masked."""
    if isinstance(value, str):
        return mask_text(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return mask_mapping(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [mask(each) for each in value]
    return mask(repr(value))


@lru_cache(256)
def read_name(name: str) -> tuple[str, bool]:
    """Return a masked name, and whether values with this name are secrets."""
    return mask_text(name), SECRET_NAMES.search(name) is not None


def keep_in_line(_: object, __: str, event: EventDict) -> EventDict:
    """Escape line breaks, so that clients cannot forge lines; indent tracebacks."""
    return {
        name.translate(CONTROLS): indent_lines(value) if name in MANY_LINES else in_line(value)
        for name, value in event.items()
    }


def in_line(value: object) -> object:
    """Escape control characters in text; the renderer escapes other values."""
    return value.translate(CONTROLS) if isinstance(value, str) else value


def indent_lines(value: object) -> str:
    """Indent each line, so that it does not look like a log line."""
    return "\n".join(f"    {in_line(line)}" for line in str(value).split("\n"))


def is_no_websocket_line(record: logging.LogRecord) -> bool:
    """Return False for uvicorn's records about WebSockets."""
    return not str(record.msg).startswith(WEBSOCKET_LINES)
