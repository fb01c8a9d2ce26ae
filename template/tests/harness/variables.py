"""Context variables: a test sees those of its fixtures, and leaves none behind."""

from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from types import coroutine
from typing import Any


class Variables:
    """The context variables of one test and its fixtures.

    All async tests and fixtures run in one task, and so in one context. Sync fixtures run outside
    of it: `note` copies what they set.
    """

    def __init__(self) -> None:
        self._context: Context | None = None
        self._outside = copy_context()
        self._noted: dict[Any, Any] = {}

    def note(self) -> None:
        """Copy the variables that were set outside the event loop since the test began."""
        for variable, value in copy_context().items():
            if variable not in self._outside or self._outside[variable] is not value:
                self._noted[variable] = value
        self._outside = copy_context()

    async def run(self, awaited: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine with these variables."""
        if self._context is None:
            self._context = copy_context()
        for variable, value in self._noted.items():
            self._context.run(variable.set, value)
        self._noted.clear()
        return await run_in(self._context, awaited)


@coroutine
def run_in(context: Context, awaited: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine in another context than its task's."""
    step = partial(awaited.send, None)
    while True:
        try:
            future = context.run(step)
        except StopIteration as end:
            return end.value
        try:
            step = partial(awaited.send, (yield future))
        except BaseException as error:  # noqa: BLE001 (it is raised in the coroutine)
            step = partial(awaited.throw, error)
