"""Tracebacks in the log: the service's own code, without what the framework runs around it."""

import logging
import sysconfig
from pathlib import Path
from traceback import TracebackException

AROUND = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)
"""Where the code is that runs around the service's own: Python, packages, and app/core."""


def shorten(record: logging.LogRecord) -> bool:
    """Write the record's exception in short; a filter for loggers, which lets all records through.

    A handler that takes the exception itself, to send it somewhere, gets it whole.
    """
    if record.exc_info and record.exc_info[1]:
        exception = TracebackException.from_exception(record.exc_info[1])
        drop_frames(exception)
        record.exc_text = "".join(exception.format()).rstrip()
    return True


def drop_frames(exception: TracebackException) -> None:
    """Drop the frames that are not the service's own, except for the one that raised."""
    stack = exception.stack
    stack[:-1] = [frame for frame in stack[:-1] if not frame.filename.startswith(AROUND)]
    for other in (exception.__cause__, exception.__context__, *(exception.exceptions or ())):
        if other is not None:
            drop_frames(other)
