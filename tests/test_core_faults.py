"""Faults planted in app/core: the tests of each rendered project catch them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants import Mutant, run_with
from tests.rendering import Project

CORE = "app/core/{}.py"
# Faults that only PostgreSQL can show; the others are planted in a project on SQLite.
ON_POSTGRESQL = {
    "statements are not limited",
    "the connection is used after the server closed it",
}

MUTANTS = [
    # ---- Errors ----
    Mutant(
        "an error that nobody expected says what it was",
        CORE.format("problems"),
        "    return problem(request, status.HTTP_500_INTERNAL_SERVER_ERROR)\n",
        "    return problem(request, status.HTTP_500_INTERNAL_SERVER_ERROR, {'detail': str(_)})\n",
    ),
    Mutant(
        "a refused request is repeated",
        CORE.format("problems"),
        "[{name: each[name] for name in InvalidPart.model_fields} for each in error.errors()]",
        "list(error.errors())",
    ),
    Mutant(
        "refusals of middlewares stay plain text",
        CORE.format("problems"),
        "return RefusalProblems(make_stack())",
        "return make_stack()",
    ),
    Mutant(
        "problems have no request id",
        CORE.format("problems"),
        '    if "request_id" in request.scope:\n',
        "    if False:\n",
    ),
    Mutant(
        "problems are not declared",
        CORE.format("problems"),
        "            declare_problems(make_document())\n",
        "            make_document()\n",
    ),
    # ---- Logs ----
    Mutant("secrets are logged", CORE.format("logs"), "            mask_values,\n", ""),
    Mutant(
        "values with the name of a secret are logged",
        CORE.format("logs"),
        "hidden = is_secret and not",
        "hidden = False and not",
    ),
    Mutant(
        "a client forges lines",
        CORE.format("logs"),
        "renderers: list[Processor] = (\n"
        "        [JSONRenderer()]\n        if settings.is_deployed\n        else [keep_in_line, ",
        "renderers: list[Processor] = (\n"
        "        [JSONRenderer()]\n        if settings.is_deployed\n        else [",
    ),
    Mutant(
        "drivers flood the log",
        CORE.format("logs"),
        "root.setLevel(max(level, logging.WARNING))",
        "root.setLevel(level)",
    ),
    Mutant(
        "uvicorn logs requests too",
        CORE.format("logs"),
        'server.propagate = name != "uvicorn.access"',
        "server.propagate = True",
    ),
    Mutant(
        "uvicorn logs the query of a WebSocket",
        CORE.format("logs"),
        '    logging.getLogger("uvicorn.error").addFilter(is_no_websocket_line)\n',
        "",
    ),
    Mutant(
        "an event pretends to be another",
        CORE.format("logs"),
        "return {**first, **event, **first}",
        "return {**first, **event}",
    ),
    Mutant(
        "lines have no request id",
        CORE.format("requests"),
        'bind_contextvars(request_id=scope["request_id"], **trace_id)',
        "bind_contextvars(**trace_id)",
    ),
    Mutant(
        "any id of a client is taken",
        CORE.format("requests"),
        "if SANE_ID.fullmatch(request_id) else uuid4().hex",
        "if request_id else uuid4().hex",
    ),
    Mutant(
        "what a request bound stays for the next one",
        CORE.format("requests"),
        "        clear_contextvars()\n",
        "",
    ),
    Mutant(
        "probes fill the log",
        CORE.format("requests"),
        "is_quiet = route in PROBES and",
        "is_quiet = False and",
    ),
    Mutant(
        "a request that fails has no line",
        CORE.format("requests"),
        "        finally:\n            exchange.end()\n",
        "        finally:\n            pass\n",
    ),
    # ---- Traces ----
    Mutant(
        "statements are no spans",
        CORE.format("telemetry"),
        '    event.listen(engine, "before_cursor_execute", begin_span)\n'
        '    event.listen(engine, "after_cursor_execute", end_span)\n',
        "",
    ),
    Mutant(
        "statements are watched where nobody records",
        CORE.format("telemetry"),
        "    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):\n"
        "        return\n",
        "",
    ),
    # ---- The database ----
    Mutant(
        "a database that is away is an error 500",
        CORE.format("application"),
        "    answer_database_errors(app)\n",
        "",
    ),
    Mutant(
        "a full disk looks like a database that is away",
        CORE.format("unavailable"),
        "        return DatabaseFullError\n",
        "        return DatabaseUnavailableError\n",
    ),
    Mutant(
        "nobody is told when to try again",
        CORE.format("unavailable"),
        'headers={"Retry-After": str(RETRY_AFTER)},',
        "headers={},",
    ),
    Mutant(
        "statements are not limited",
        CORE.format("database"),
        '        options["connect_args"] = timeouts(settings)\n',
        "        pass\n",
    ),
    Mutant(
        "the connection is used after the server closed it",
        CORE.format("database"),
        '    "asyncpg": {"checkout": refuse_lost_connection},\n',
        "",
    ),
    Mutant(
        "parameters of failed statements are logged",
        CORE.format("database"),
        '{"hide_parameters": is_deployed}',
        '{"hide_parameters": False}',
    ),
    Mutant(
        "the id of a deleted row is given again",
        CORE.format("database"),
        '        table.dialect_kwargs["sqlite_autoincrement"] = True\n',
        "        pass\n",
    ),
    Mutant(
        "readers on SQLite wait for writers",
        CORE.format("database"),
        'READ_ONLY = {"sqlite_begin": "DEFERRED"}',
        'READ_ONLY = {"sqlite_begin": "IMMEDIATE"}',
    ),
    Mutant(
        "a failed commit leaves SQLite locked",
        CORE.format("database"),
        '        "reset": end_sqlite_transaction,\n',
        "",
    ),
    # ---- Health ----
    Mutant(
        "ready without migrations",
        CORE.format("health"),
        "if not await connection.run_sync(is_behind, read_revisions()):",
        "if True:",
    ),
    Mutant(
        "not ready because the database is ahead",
        CORE.format("migrations"),
        "return current <= revisions.known and not revisions.heads <= current",
        "return current != revisions.heads",
    ),
    Mutant(
        "ready while the service stops",
        CORE.format("health"),
        "STOPPING if state.stopping.has_begun else await",
        "await",
    ),
    Mutant(
        "a database that hangs is asked by every probe",
        CORE.format("health"),
        "if self._check is None or self._check.done():",
        "if True:",
    ),
    # ---- Stopping ----
    Mutant(
        "streams go on when the service stops",
        CORE.format("stopping"),
        "                    self._stopping.limit(request, 0)\n",
        "                    pass\n",
    ),
    Mutant(
        "a request may take for ever when the service stops",
        CORE.format("stopping"),
        "async with self._stopping.limited(self._stopping.timeout) as request:",
        "async with self._stopping.limited(1e9) as request:",
    ),
    Mutant(
        "the next request meets a connection that is being closed",
        CORE.format("stopping"),
        "                    message = with_close(message, scope)\n",
        "                    pass\n",
    ),
    # ---- Hosts, origins, headers, bodies ----
    Mutant(
        "every host is served",
        CORE.format("web_security"),
        '    if "*" not in settings.allowed_hosts:\n',
        "    if False:\n",
    ),
    Mutant(
        "every origin is served",
        CORE.format("web_security"),
        "allow_origins=settings.cors_origins",
        'allow_origins=["*"]',
    ),
    Mutant(
        "private responses are stored",
        CORE.format("web_security"),
        '            added = HEADERS | {"Cache-Control": "no-store"}\n',
        "            pass\n",
    ),
    Mutant(
        "bodies of any size",
        CORE.format("application"),
        '{"max_body_size": settings.max_body_size, **options}',
        "{**options}",
    ),
    Mutant(
        "the documentation cannot be switched off",
        CORE.format("application"),
        "    if not settings.api_docs:\n",
        "    if False:\n",
    ),
    # ---- Pages ----
    Mutant(
        "a forged cursor is an error of the database",
        CORE.format("pages"),
        "self._place.validate_json(place, strict=True)",
        "__import__('json').loads(place)",
    ),
    Mutant(
        "the cursor of another list is taken",
        CORE.format("pages"),
        "            if name != self._name:\n",
        "            if False:\n",
    ),
    # ---- Settings ----
    Mutant(
        "the placeholder of the key is accepted in production",
        CORE.format("config"),
        "if self.is_deployed and PLACEHOLDER in",
        "if False and PLACEHOLDER in",
    ),
    Mutant(
        "the database's password is shown",
        CORE.format("config"),
        "database_url: Annotated[DatabaseUrl, Field(repr=False)]",
        "database_url: DatabaseUrl",
    ),
    Mutant(
        "a deployed service reads the example",
        CORE.format("config"),
        'return None if environment else ROOT / ".env.example"',
        'return ROOT / ".env.example"',
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_fault_in_the_core_is_caught(
    installed: Callable[[str], Project],
    tmp_path: Path,
    mutant: Mutant,
    record_property: Callable[[str, object], None],
) -> None:
    project = installed("other" if mutant.name in ON_POSTGRESQL else "core")
    options = ("-o", "timeout=20", "tests/core")
    code, output, caught_by = run_with(mutant, project, tmp_path / "copy", *options)
    assert code == 1, f"survived: {mutant.name}\n{output}"
    assert caught_by, output
    record_property("mutant", f"{mutant.name}: {caught_by[0]}")
