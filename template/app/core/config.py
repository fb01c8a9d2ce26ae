"""The settings that every service has, and the code that loads them."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

SettingsT = TypeVar("SettingsT", bound="ServiceSettings")

ROOT = Path(__file__).parents[2]
"""Where `.env` and `.env.example` are, whatever the working directory."""
PLACEHOLDER = "change-me"


def require_async_driver(url: str) -> str:
    """Return `url`. Raises ValueError unless its driver is installed and supports asyncio."""
    try:
        dialect = make_url(url).get_dialect()
        dialect.import_dbapi()
        is_async = dialect.is_async
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError):
        is_async = False
    if not is_async:
        raise ValueError(
            "should be a URL with an asyncio driver that is installed, such as "
            "sqlite+aiosqlite:///./app.db or postgresql+asyncpg://user:password@host/name"
        )
    return url


def split_at_commas(value: object) -> object:
    """Return the parts of a string; anything else unchanged."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def require_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return `hosts`. Raises ValueError unless each is a host name or starts with `*.`."""
    if not all(re.fullmatch(r"\*|(\*\.)?[\w.-]+", host) for host in hosts):
        raise ValueError(
            "should be host names separated by commas, without schemes and ports, "
            "such as api.example.com,*.example.org"
        )
    return hosts


def require_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Return `origins`. Raises ValueError unless each has a scheme and no path."""
    if not all(re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin) for origin in origins):
        raise ValueError(
            "should be origins separated by commas, with schemes and without paths, "
            "such as https://app.example.com,http://localhost:3000"
        )
    return origins


DatabaseUrl = Annotated[str, AfterValidator(require_async_driver)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_at_commas)]


class ServiceSettings(BaseSettings):
    """The settings of the core. Each field is an environment variable in upper case."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    environment: Literal["development", "test", "staging", "production"]
    database_url: Annotated[DatabaseUrl, Field(repr=False)]
    # Bypasses the connection pooler that `database_url` may name: poolers do not support LISTEN.
    database_direct_url: Annotated[DatabaseUrl | None, Field(repr=False)] = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    # For a database server, per process: how many connections stay open, how many more may be
    # opened, and how many seconds a request waits for one.
    database_pool_size: Annotated[int, Field(ge=1)] = 5
    database_max_overflow: Annotated[int, Field(ge=0)] = 10
    database_pool_timeout: Annotated[float, Field(gt=0)] = 5
    # How many seconds a statement may take, and may wait for a lock; 0 means no limit.
    database_statement_timeout: Annotated[float, Field(ge=0)] = 30
    database_lock_timeout: Annotated[float, Field(ge=0)] = 3
    max_body_size: Annotated[int, Field(ge=0)] = 10 * 2**20  # bytes of a request
    allowed_hosts: Annotated[CommaSeparated, AfterValidator(require_hosts)] = ("*",)
    cors_origins: Annotated[CommaSeparated, AfterValidator(require_origins)] = ()
    api_docs: bool = True  # serve /docs, /redoc and /openapi.json
    # How many seconds requests may continue after SIGTERM. uvicorn reads the same variable, for
    # what the application cannot end, such as a client that does not read.
    uvicorn_timeout_graceful_shutdown: Annotated[int, Field(ge=1)] = 8

    # How many jobs a worker runs at once, after how many seconds without a heartbeat others take
    # over its jobs, which file it touches while it is alive, and how many days the log is kept.
    jobs_concurrency: Annotated[int, Field(ge=2)] = 10
    jobs_heartbeat_timeout: Annotated[float, Field(ge=1)] = 30
    jobs_health_file: Path | None = None
    jobs_log_days: Annotated[float, Field(gt=0)] = 7

    @property
    def is_deployed(self) -> bool:
        """Whether the environment is staging or production."""
        return self.environment in {"staging", "production"}


class CoreSettings(ServiceSettings):
    """The settings of a service that signs something, and so needs a SECRET_KEY."""

    secret_key: Annotated[SecretStr, Field(min_length=32)]

    @model_validator(mode="after")
    def refuse_placeholder(self) -> Self:
        """Raise ValueError if a deployed service uses the key of `.env.example`."""
        if self.is_deployed and PLACEHOLDER in self.secret_key.get_secret_value():
            raise ValueError(
                "SECRET_KEY: is the placeholder of .env.example; make one with: "
                "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
            )
        return self


def env_file() -> Path | None:
    """Return the file that completes the environment.

    This is `.env`, if it exists, or `.env.example` on a fresh checkout. If ENVIRONMENT is set,
    `.env.example` is not used, so that a deployed service is told what is missing. Tests always
    use `.env.example`, so that they do not depend on a developer's `.env`.
    """
    environment = os.environ.get("ENVIRONMENT")
    if environment == "test":
        return ROOT / ".env.example"
    if (ROOT / ".env").exists():
        return ROOT / ".env"
    return None if environment else ROOT / ".env.example"


def describe(error: ValidationError) -> str:
    """Return a line for each variable that is missing or wrong, without its value."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        variable = "__".join(str(part) for part in problem["loc"]).upper()
        reason = "is missing" if problem["type"] == "missing" else problem["msg"]
        reason = reason.removeprefix("Value error, ")
        lines.append(f"  {variable}: {reason}" if variable else f"  {reason}")
    return "\n".join(lines)


def load_settings(settings_class: type[SettingsT], **values: Any) -> SettingsT:
    """Load the settings from `values`, the environment and `.env`, in this order.

    Raises SystemExit with a message that lists each invalid variable.
    """
    try:
        return settings_class(_env_file=env_file(), **values)
    except ValidationError as error:
        sys.exit(
            f"The settings are not complete:\n{describe(error)}\n"
            "Set them in the environment or in .env; .env.example shows all of them."
        )
