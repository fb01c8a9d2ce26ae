"""Watch all engines, so that no test writes to a database where its writes are not undone."""

import asyncio
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import Connection, Dialect, Engine, event

from tests.harness.databases import RUN_ID
from tests.harness.statements import effect_of

WAYS_OUT = "Mark the test with @pytest.mark.committed: its commits are real, and undone afterwards."

OTHER_ENGINE = (
    "A transaction begins on a different engine, so it would neither see the rows of the test nor "
    f"be rolled back with it. {WAYS_OUT}"
)
NO_FIXTURE = (
    "A test or a fixture uses the test database without its fixtures, so its writes would not be "
    "undone. Use the fixture `client`, `app` or `db_session`, or mark the test with "
    "@pytest.mark.committed."
)
NO_TEST_DATABASE = (
    "The tests tried to open the database {name!r}, which is not a test database. Take the URL "
    "from `settings`, as the fixture `app` does, or from DATABASE_URL in the environment. The name "
    "of your own test database must contain 'test', or its file must be in the temporary directory."
)


class IsolationError(AssertionError):
    """The harness cannot undo or show what a test does. Even if it is swallowed, the test fails."""


class Phase(Enum):
    """The phase of a test, which decides who may use its database."""

    FIXTURES = "fixtures"
    """The harness, and fixtures that tests share."""
    NO_DATABASE = "no database"
    ROLLED_BACK = "rolled back"
    COMMITTED = "committed"


class Guard:
    """Watches all engines of the process, sync and async, whoever created them."""

    def __init__(self) -> None:
        self.phase = Phase.FIXTURES
        self.database = ""
        """The name of the worker's database, or of its file."""
        self.configured = ""
        """The name of the database in TEST_DATABASE_URL."""
        self.rolled_back_engine: Engine | None = None
        self.refusals: list[str] = []
        self.open: dict[Connection, asyncio.Task[Any] | None] = {}
        """The transactions that a committed test has begun, and the tasks that began them."""
        self.engines: set[Engine] = set()
        """The engines that have connections to the worker's database."""
        self.connection_in_doubt = self.schema_in_doubt = False
        self.written_by_fixtures = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the context ends."""
        listeners: dict[str, Callable[..., None]] = {
            "do_connect": self._connect,
            "begin": self._begin,
            "commit": self._end,
            "rollback": self._end,
            "before_cursor_execute": self._execute,
        }
        with listening(Engine, listeners):
            yield

    @contextmanager
    def test_in(self, phase: Phase) -> Iterator[None]:
        """Watch a test in `phase`."""
        self.phase = phase
        self.connection_in_doubt = self.schema_in_doubt = False
        try:
            yield
        finally:
            self.phase = Phase.FIXTURES

    def refuse(self, reason: str) -> NoReturn:
        """Raise IsolationError. Even if it is caught, the test fails with `reason`."""
        self.refusals.append(reason)
        raise IsolationError(reason)

    def is_of_the_test(self, engine: Engine) -> bool:
        """Return whether `engine` is connected to the worker's database."""
        name = engine.url.database
        if not name and engine.dialect.name != "sqlite":
            return True  # a custom connect function can connect to anything
        return Path(str(name)).name == self.database

    def is_rolled_back(self, engine: Engine) -> bool:
        """Return whether the transactions of `engine` are rolled back with the test."""
        rolled_back = self.rolled_back_engine
        return rolled_back is not None and engine.pool is rolled_back.pool

    def _connect(
        self, dialect: Dialect, _: object, arguments: Sequence[Any], options: dict[str, Any]
    ) -> None:
        name = options.get("database") or options.get("dbname") or next(iter(arguments), "")
        is_own = RUN_ID in str(name) or str(name) == self.configured
        if not is_own and not is_test_database(str(name), is_file=dialect.name == "sqlite"):
            self.refuse(NO_TEST_DATABASE.format(name=name))

    def _begin(self, connection: Connection) -> None:
        engine = connection.engine
        if not self.is_of_the_test(engine):
            return
        if self.is_rolled_back(engine):
            return
        self.engines.add(engine)
        if self.phase is Phase.ROLLED_BACK:
            self.refuse(OTHER_ENGINE)
        if self.phase is Phase.NO_DATABASE:
            self.refuse(NO_FIXTURE)
        if self.phase is Phase.COMMITTED:
            self.open[connection] = current_task()

    def _end(self, connection: Connection) -> None:
        self.open.pop(connection, None)

    def _execute(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        effect = effect_of(statement)
        self.connection_in_doubt |= effect.changes_session or effect.changes_schema
        self.schema_in_doubt |= effect.changes_schema
        if self.phase is Phase.FIXTURES and effect.writes:
            engine = connection.engine
            of_fixtures = self.is_of_the_test(engine) and not self.is_rolled_back(engine)
            self.written_by_fixtures |= of_fixtures


@contextmanager
def listening(target: object, listeners: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Register `listeners`, by event name, with SQLAlchemy until the context ends."""
    for name, listener in listeners.items():
        event.listen(target, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(target, name, listener)


TEST = re.compile(r"(?<![a-z])tests?(?![a-z])", re.I)


def is_test_database(name: str, *, is_file: bool) -> bool:
    """Return whether the name of a database, or the path of its file, says that it is for tests."""
    if not is_file:
        return bool(TEST.search(name))
    if name in {"", ":memory:"} or "mode=memory" in name:
        return True
    file = Path(name.removeprefix("file:")).resolve()
    return file.is_relative_to(Path(tempfile.gettempdir()).resolve()) or bool(
        TEST.search(file.name)
    )


def current_task() -> asyncio.Task[Any] | None:
    """Return the current task, or None in a thread without an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


guard = Guard()
"""The only guard of this process: its listeners are for all engines."""
