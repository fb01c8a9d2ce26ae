"""Tracebacks in the log: the service's own code, without what the framework runs around it."""

import logging
import sysconfig
from traceback import TracebackException

INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def shorten(record: logging.LogRecord) -> bool:
    """Write the record's exception in short; a filter for loggers, which lets all records through.

    A handler that takes the exception itself, to send it somewhere, gets it whole.
    """
    if record.exc_info and record.exc_info[1]:
        exception = TracebackException.from_exception(record.exc_info[1])
        drop_installed(exception)
        record.exc_text = "".join(exception.format()).rstrip()
    return True


def drop_installed(exception: TracebackException) -> None:
    """Drop the frames of Python and of packages, except for the one that raised."""
    stack = exception.stack
    stack[:-1] = [frame for frame in stack[:-1] if not frame.filename.startswith(INSTALLED)]
    for other in (exception.__cause__, exception.__context__, *(exception.exceptions or ())):
        if other is not None:
            drop_installed(other)
