"""When a test fails, show the project's own lines, and where an `await` is missing."""

import asyncio
import gc
import sys
import traceback
from collections.abc import Iterator
from inspect import CORO_CREATED, getcoroutinestate
from pathlib import Path
from types import CoroutineType, FrameType

from app.core.config import ROOT

# The template's own code counts as a library. pytest hides its own frames itself.
LIBRARIES = (Path(sys.prefix), ROOT / "app/core", ROOT / "tests/harness")
PYTEST = {"_pytest", "pluggy"}
NOT_AWAITED = "`{}` is a coroutine: an `await` is missing."


def explain(error: BaseException) -> None:
    """Hide the frames of libraries, except with --full-trace; name a missing `await`."""
    for each in chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if is_of_library(frame):
                frame.f_globals["__tracebackhide__"] = True
                continue
            for name, value in frame.f_locals.items():
                if is_not_awaited(value):
                    each.add_note(NOT_AWAITED.format(name))


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and its contexts."""
    found = [error]
    for each in found:  # the loop extends it
        yield each
        causes = (each.__cause__, each.__context__)
        found += [cause for cause in causes if cause is not None and cause not in found]


def is_of_library(frame: FrameType) -> bool:
    """Return whether a frame's code is not the project's own."""
    if frame.f_globals.get("__name__", "").partition(".")[0] in PYTEST:
        return False
    file = Path(frame.f_globals.get("__file__", ""))
    return not file.is_relative_to(ROOT) or any(map(file.is_relative_to, LIBRARIES))


def is_not_awaited(value: object) -> bool:
    """Return whether a value is a coroutine that has not started."""
    return type(value) is CoroutineType and getcoroutinestate(value) == CORO_CREATED


def close_coroutines() -> None:
    """Close the coroutines that a failed test did not await; those of tasks end with their task.

    Otherwise they would warn when the garbage collector finds them, during another test.
    """
    objects = gc.get_objects()
    of_tasks = {id(each.get_coro()) for each in objects if issubclass(type(each), asyncio.Task)}
    for each in objects:
        if is_not_awaited(each) and id(each) not in of_tasks:
            each.close()
