"""Jobs: work that happens after the response, and is not lost if a process dies.

A job is an async function. Put it next to the feature that needs it:

    @job()
    async def send_welcome(context: JobContext, user_id: int) -> None: ...

    await send_welcome.enqueue(session, user_id=user.id)

Pass all jobs of the service to `build_app` (`jobs=` in app/main.py). A job belongs to the
transaction of `session`: it runs at least once after a commit, and never after a rollback.

On PostgreSQL, jobs are rows. Workers run them (`uv run poe worker`), and take over the jobs of a
worker that has died. On SQLite, each process runs its own jobs and schedules, from memory: when it
dies, it loses the jobs that have not run.
"""

import dataclasses
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec

from opentelemetry import propagate
from pgqueuer.adapters.inmemory import InMemoryDriver, InMemoryQueries
from pgqueuer.adapters.persistence.qb import (
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.queries import Queries
from pgqueuer.sm import SchedulerManager
from pydantic import TypeAdapter
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from app.core.job_driver import ConnectionDriver
from app.core.job_tables import NAMES

if TYPE_CHECKING:  # tests import this module before the environment is set up
    from app.settings import Settings

P = ParamSpec("P")

KEY = "app.core.jobs"
"""The key of `Jobs` in the `info` of a session."""
LONGEST_DELAY = timedelta(hours=1)
"""Between two attempts."""


@dataclass(frozen=True)
class JobContext:
    """What a job gets: it has no request, and opens its own sessions."""

    session_factory: async_sessionmaker[AsyncSession]
    settings: "Settings"
    state: Mapping[str, Any]
    """What the lifespan yields in app/main.py."""
    attempt: int = 1
    """1 for the first attempt."""


Function = Callable[Concatenate[JobContext, P], Coroutine[Any, Any, None]]


class Job(Generic[P]):
    """A function that runs later, with arguments that are stored as JSON."""

    def __init__(
        self,
        function: Function[P],
        *,
        name: str | None,
        attempts: int,
        delay: timedelta,
        schedule: str | None,
    ) -> None:
        self.function = function
        self.name = name or function.__name__
        self.attempts = attempts
        self.schedule = schedule
        self._delay = delay
        self._signature = signature(function, eval_str=True)
        parameters = list(self._signature.parameters.values())[1:]
        required = [each.name for each in parameters if each.default is Parameter.empty]
        if schedule is not None and required:
            raise ValueError(f"The job {self.name} has a schedule: {required[0]} needs a default.")
        fields = [(each.name, each.annotation) for each in parameters]
        self._arguments = TypeAdapter[Any](dataclasses.make_dataclass(self.name, fields))

    async def __call__(self, context: JobContext, *args: P.args, **kwargs: P.kwargs) -> None:
        """Run the job now, without the queue, like any function."""
        await self.function(context, *args, **kwargs)

    async def enqueue(self, session: AsyncSession, *args: P.args, **kwargs: P.kwargs) -> None:
        """Write the job in the transaction of `session`; it runs after the commit.

        Raises ValidationError if an argument has the wrong type.
        """
        await write(session, self.name, self.dump(*args, **kwargs))

    async def enqueue_in(
        self, delay: timedelta, session: AsyncSession, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Write the job as `enqueue` does; it runs no sooner than `delay` from now."""
        await write(session, self.name, self.dump(*args, **kwargs), delay)

    def dump(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the arguments as JSON. Raises ValidationError."""
        bound = self._signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        return self._arguments.dump_json(self._arguments.validate_python(arguments))

    def load(self, payload: bytes | None) -> dict[str, Any]:
        """Return the arguments from the JSON of `dump`. Raises ValidationError."""
        arguments: dict[str, Any] = vars(self._arguments.validate_json(payload or b"{}"))
        return arguments

    def delay_after(self, attempt: int) -> timedelta:
        """Return how long to wait after a failed attempt: twice as long each time."""
        factor: int = 2 ** min(attempt - 1, 20)
        return min(self._delay * factor, LONGEST_DELAY)


AnyJob = Job[...]


def job(
    *,
    name: str | None = None,
    attempts: int = 10,
    delay: timedelta = timedelta(seconds=5),
    schedule: str | None = None,
) -> Callable[[Function[P]], Job[P]]:
    """Make an async function a job; its first parameter is a JobContext.

    If a job raises, it runs again, up to `attempts` times in all: `delay` after the first attempt,
    then twice as long each time, up to an hour. With the defaults, this takes 42 minutes. After the
    last attempt it has failed for good, and waits for `uv run poe retry-jobs`.

    `schedule` says when the job runs by itself, once for all replicas: five cron fields, in UTC.
    `name` is stored with each job, so keep it when you rename the function.
    """

    def make(function: Function[P]) -> Job[P]:
        return Job(function, name=name, attempts=attempts, delay=delay, schedule=schedule)

    return make


def builders() -> dict[str, Any]:
    """Return the builders of the queue's SQL, with the names in app/core/job_tables.py."""
    return {
        "qbe": QueryBuilderEnvironment(NAMES),
        "qbq": QueryQueueBuilder(NAMES),
        "qbs": QuerySchedulerBuilder(NAMES),
    }


def local_queue() -> InMemoryQueries:
    """Return a queue in memory, for SQLite."""
    return InMemoryQueries(InMemoryDriver(), **builders())


@dataclass(frozen=True)
class Jobs:
    """The jobs of a service, and their queue on SQLite. Sessions carry this in their `info`."""

    known: Mapping[str, AnyJob] | None = None
    """By name; None if they are not known."""
    queue: InMemoryQueries | None = None
    """The queue in memory; None if jobs are rows in the database."""

    @property
    def info(self) -> dict[str, Any]:
        """The `info` for the session factory."""
        return {KEY: self}


def collect(jobs: Iterable[AnyJob]) -> dict[str, AnyJob]:
    """Return the jobs by name.

    Raises ValueError for two jobs with the same name, and for an invalid cron schedule.
    """
    known: dict[str, AnyJob] = {}
    schedules = SchedulerManager(local_queue())
    for each in jobs:
        if known.setdefault(each.name, each) is not each:
            raise ValueError(f"Two jobs are named {each.name}: give one of them another `name`.")
        if each.schedule is not None:
            schedules.schedule(each.name, each.schedule)
    return known


async def write(
    session: AsyncSession, name: str, payload: bytes, delay: timedelta = timedelta(0)
) -> None:
    """Write a job in the transaction of `session`.

    Raises LookupError if the service does not know the job, or has no queue for it.
    """
    jobs: Jobs | None = session.info.get(KEY)
    if jobs is not None and jobs.known is not None and name not in jobs.known:
        raise LookupError(f"Nobody would run the job {name}: add it to `jobs` in app/main.py.")
    headers: dict[str, str] = {}
    propagate.inject(headers)  # the worker continues the trace of the request
    new: dict[str, Any] = {
        "entrypoint": name,
        "payload": payload,
        "execute_after": delay,
        "headers": headers,
    }
    if jobs is not None and jobs.queue is not None:
        if not session.in_transaction():
            await session.begin()
        outbox_of(session.sync_session).add(jobs.queue, new)
    elif session.get_bind().dialect.name == "postgresql":
        connection = await session.connection()
        await Queries(ConnectionDriver(connection), **builders()).enqueue(**new)
    else:
        raise LookupError(
            f"Nobody would run the job {name}. On SQLite, only sessions of the session factory of "
            "the application know its queue."
        )


class Outbox:
    """The jobs of a session on SQLite, until its transaction is committed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._jobs: list[tuple[SessionTransaction | None, InMemoryQueries, dict[str, Any]]] = []
        event.listen(session, "after_commit", self._hand_over)
        event.listen(session, "after_soft_rollback", self._drop)
        event.listen(session, "after_transaction_end", self._end)

    def add(self, queue: InMemoryQueries, new: dict[str, Any]) -> None:
        """Keep a job for `queue`, in the innermost savepoint."""
        transaction = self._session.get_nested_transaction() or self._session.get_transaction()
        self._jobs.append((transaction, queue, new))

    def _hand_over(self, session: Session) -> None:
        if session.in_nested_transaction():  # a savepoint, which may still be rolled back
            return
        jobs, self._jobs = self._jobs, []
        for _, queue, new in jobs:
            run_at_once(queue.enqueue(**new))

    def _drop(self, _: Session, ended: SessionTransaction) -> None:
        self._jobs = [each for each in self._jobs if not is_within(each[0], ended)]

    def _end(self, _: Session, ended: SessionTransaction) -> None:
        if ended.parent is None:  # closed without a commit
            self._jobs = []


def run_at_once(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that never waits, like those of the queue in memory."""
    with suppress(StopIteration):
        coroutine.send(None)


def outbox_of(session: Session) -> Outbox:
    """Return the outbox of a session."""
    outbox: Outbox | None = session.info.get(Outbox)
    if outbox is None:
        outbox = session.info[Outbox] = Outbox(session)
    return outbox


def is_within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    """Return whether a transaction is `outer`, or a savepoint inside it."""
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer
