"""Build the application without its features, for app/main.py."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from app.core import health
from app.core.config import ServiceSettings
from app.core.database import complete_options, create_engine, create_session_factory
from app.core.job_runner import run_here
from app.core.jobs import AnyJob, Jobs, collect, local_queue
from app.core.logs import configure_logging, configure_structlog
from app.core.migrations import read_revisions
from app.core.notifications import Notifications
from app.core.problems import answer_as_fastapi_does
from app.core.requests import RequestMiddleware
from app.core.stopping import Stopping, StoppingMiddleware, when_told_to_stop
from app.core.telemetry import TELEMETRY, read_telemetry_variables, trace_statements
from app.core.unavailable import answer_database_errors
from app.core.web_security import add_web_security
from app.database import ENGINE_OPTIONS

logger = logging.getLogger(__name__)
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]


def build_app(
    settings: ServiceSettings,
    lifespan: Lifespan,
    *,
    jobs: Iterable[AnyJob] = (),
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> FastAPI:
    """Build a FastAPI application with logging, the database and the health probes.

    `app.state` has `settings`, `session_factory`, `jobs`, `notifications` and `stopping`; mounted
    applications find it in `request.state.core`. `lifespan` can use the database: it starts before
    the first request, or a worker's first job, and ends after the last; `request.state` has what it
    yields. `jobs` are all jobs of the service (app/core/jobs.py). `engine_options` override the
    settings and app/database.py. All other options go to FastAPI.
    """
    configure_structlog()
    if logging.getLogger("uvicorn").handlers:  # uvicorn is loading this application and will log it
        configure_logging(settings)
    own = {**ENGINE_OPTIONS, **(engine_options or {})}
    completed = complete_options(own, settings)
    engine = create_engine(settings.database_url, **completed)
    direct_url = settings.database_direct_url or settings.database_url
    notifications = Notifications(create_engine(direct_url, **completed))
    stopping = Stopping(settings.uvicorn_timeout_graceful_shutdown)

    @asynccontextmanager
    async def core_lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        configure_logging(settings)
        logger.info(
            "%s starts",
            app.title,
            extra={"environment": settings.environment, "database": engine.dialect.name},
        )
        trace_statements(engine.sync_engine)
        read_revisions()  # slow, so not in the first request
        try:
            with when_told_to_stop(stopping.begin):
                async with (
                    notifications.listening(),
                    lifespan(app) as state,
                    AsyncExitStack() as stack,
                ):
                    shared = {"core": app.state, **(state or {})}
                    queue = app.state.jobs.queue
                    if queue is not None and settings.environment != "test":
                        await stack.enter_async_context(run_here(app, shared, queue))
                    yield shared
        finally:
            await engine.dispose()

    options = {"max_body_size": settings.max_body_size, **options}
    if not settings.api_docs:
        options["openapi_url"] = None
    read_telemetry_variables()
    options["telemetry"] = {**TELEMETRY, **(options.get("telemetry") or {})}
    options["exception_handlers"] = {
        RequestValidationError: answer_as_fastapi_does,
        **(options.get("exception_handlers") or {}),
    }
    app = FastAPI(lifespan=core_lifespan, **options)
    app.state.settings = settings
    app.state.stopping = stopping
    has_workers = engine.dialect.name == "postgresql"
    app.state.jobs = Jobs(collect(jobs), None if has_workers else local_queue())
    app.state.notifications = notifications
    app.state.session_factory = create_session_factory(engine, info=app.state.jobs.info)
    app.state.readiness = health.Readiness()
    answer_database_errors(app)
    app.add_middleware(StoppingMiddleware, stopping=stopping)
    add_web_security(app, settings)
    app.include_router(health.router)
    make_stack = app.build_middleware_stack
    app.build_middleware_stack = lambda: RequestMiddleware(make_stack())  # type: ignore[method-assign]
    return app
