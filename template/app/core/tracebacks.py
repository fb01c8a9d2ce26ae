"""Short tracebacks for the log: the service's own code, without the framework around it."""

import sysconfig
from pathlib import Path
from traceback import TracebackException, format_exception
from types import TracebackType

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None]

AROUND = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)
"""The code that runs around the service's own: Python, packages, and app/core."""


def short_traceback(exc_info: ExceptionInfo) -> str:
    """Format an exception with only the service's own frames, and the one that raised."""
    exception = TracebackException.from_exception(exc_info[1])
    drop_frames(exception)
    return "".join(exception.format()).rstrip()


def full_traceback(exc_info: ExceptionInfo) -> str:
    """Format an exception as Python does."""
    return "".join(format_exception(exc_info[1])).rstrip()


def drop_frames(exception: TracebackException) -> None:
    """Drop the frames that are not the service's own, except for the one that raised."""
    stack = exception.stack
    stack[:-1] = [frame for frame in stack[:-1] if not frame.filename.startswith(AROUND)]
    for other in (exception.__cause__, exception.__context__, *(exception.exceptions or ())):
        if other is not None:
            drop_frames(other)
