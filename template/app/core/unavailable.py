"""Recognize and answer the errors of a database that is down, too slow or full."""

import logging
from inspect import isawaitable

from fastapi import FastAPI, HTTPException, WebSocket, status
from fastapi.requests import HTTPConnection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.responses import Response

NO_ANSWER = "The database does not answer"
RETRY_AFTER = 5  # seconds

# https://www.sqlite.org/rescode.html
SQLITE_FULL = "SQLITE_FULL"
SQLITE_UNAVAILABLE = (
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"),  # others hold a lock for too long
    *("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY_DBMOVED"),  # the file is gone
)
# https://www.postgresql.org/docs/current/errcodes-appendix.html
DISK_FULL = "53100"
POSTGRESQL_UNAVAILABLE = (
    *("08", "57P", "58"),  # the connection, the server or its files are gone
    "53",  # the server has no more connections or memory
    *("55P03", "57014"),  # a lock or a statement took too long
)

logger = logging.getLogger(__name__)


class DatabaseUnavailableError(OperationalError):
    """The database is down, or does not answer in time. Another attempt may succeed."""


class DatabaseFullError(OperationalError):
    """The database has no space left; reading still works."""


def tell_apart(context: ExceptionContext) -> OperationalError | None:
    """Return the error to raise instead if the database is down, too slow or full, else None.

    A listener for SQLAlchemy's event `handle_error`.
    """
    if context.sqlalchemy_exception is None and isinstance(context.original_exception, OSError):
        context.is_disconnect = True  # asyncpg's own: it may still wait for the answer
    kind = None if context.is_pre_ping else kind_of(context)
    if kind is None:
        return None
    return kind(
        context.statement,
        context.parameters,
        context.original_exception,
        hide_parameters=context.engine is not None and context.engine.hide_parameters,
        connection_invalidated=context.is_disconnect,
    )


def kind_of(context: ExceptionContext) -> type[OperationalError] | None:
    """Return the class of the error to raise instead, or None to keep the original."""
    error = context.original_exception
    if not isinstance(error, Exception):  # cancelled
        return None
    name: str = getattr(error, "sqlite_errorname", None) or ""
    state: str = getattr(error, "sqlstate", None) or ""
    if name == SQLITE_FULL or state == DISK_FULL:
        return DatabaseFullError
    is_gone = context.is_disconnect or context.connection is None  # it could not connect
    if is_gone or name.startswith(SQLITE_UNAVAILABLE) or state.startswith(POSTGRESQL_UNAVAILABLE):
        return DatabaseUnavailableError
    return None


def answer_database_errors(app: FastAPI) -> None:
    """Answer 503 when the database is down or too slow, and 507 when it is full.

    The body is like that of other errors of `app`. A WebSocket is closed with 1013.
    """
    for error in (DatabaseUnavailableError, DatabaseFullError, PoolTimeoutError):
        app.add_exception_handler(error, answer_database_error)  # type: ignore[arg-type]


async def answer_database_error(connection: HTTPConnection, error: Exception) -> Response | None:
    """Answer with the application's handler of HTTPException; log one line."""
    answer = HTTPException(
        status.HTTP_503_SERVICE_UNAVAILABLE,
        NO_ANSWER,
        headers={"Retry-After": str(RETRY_AFTER)},
    )
    if isinstance(error, DatabaseFullError):
        answer = HTTPException(
            status.HTTP_507_INSUFFICIENT_STORAGE, "The database has no space left"
        )
    logger.error("%s: %s", answer.detail, reason(error))
    if isinstance(connection, WebSocket):
        await connection.close(status.WS_1013_TRY_AGAIN_LATER)
        return None
    handlers = connection.app.exception_handlers
    names = (answer.status_code, *HTTPException.__mro__)
    response = next(handlers[name] for name in names if name in handlers)(connection, answer)
    answered: Response = await response if isawaitable(response) else response
    return answered


def reason(error: BaseException) -> str:
    """Return the first line of the driver's or the pool's message, without the statement."""
    original = getattr(error, "orig", None) or error
    return next(iter(str(original).splitlines()), "") or type(original).__name__
