"""What a service imports when it starts, and a test when it runs: each package costs time."""

import json
from pathlib import Path

from tests.conftest import with_projects
from tests.rendering import Project

# Without their own dependencies.
WITH_THE_EXAMPLE = {
    *("aiosmtplib", "email_validator", "httpx2", "jwt", "pwdlib", "pyrate_limiter"),
    *("python_multipart", "stamina"),
}
IMPORTED = {
    *("alembic", "anyio", "fastapi", "pydantic", "pydantic_settings", "sqlalchemy", "starlette"),
    *("structlog", "opentelemetry", "pgqueuer"),
}
DRIVERS = {"sqlite": {"aiosqlite"}, "postgresql": {"asyncpg"}}
# Their dependencies. There must be no server, client or development tool among them.
NEEDED_BY_THESE = {
    *("_argon2_cffi_bindings", "_cffi_backend", "annotated_doc", "annotated_types", "argon2"),
    *(
        "attr",
        "croniter",
        "dateutil",
        "dotenv",
        "greenlet",
        "idna",
        "mako",
        "markupsafe",
        "pydantic_core",
        "pygments",
    ),
    *("rich", "sniffio", "tenacity", "typing_extensions", "typing_inspection"),
}
LIST = """
import json, sys
{}
installed = {{
    name.partition(".")[0]
    for name, module in sys.modules.items()
    if "site-packages" in (getattr(module, "__file__", None) or "")
}}
print(json.dumps(sorted(installed)))
"""


def imported(project: Project, statement: str) -> set[str]:
    """Return the installed packages that a statement imports."""
    said = project.check("uv", "run", "python", "-c", LIST.format(statement))
    return set(json.loads(said.splitlines()[-1]))


@with_projects("default", "other")
def test_service_imports_what_it_uses_and_nothing_else(project: Project) -> None:
    found = imported(project, "import app.main")
    expected = IMPORTED | DRIVERS[project.database]
    if project.has_example:
        expected |= WITH_THE_EXAMPLE
    assert expected <= found
    assert found - expected <= NEEDED_BY_THESE


@with_projects("default")
def test_one_test_imports_and_collects_no_more_than_it_needs(project: Project) -> None:
    run = """
import gc
import pytest
pytest.main(["-q", "-p", "no:cacheprovider", "tests/core/test_health.py", "-k", "answers"])
assert gc.get_freeze_count() > 100_000, "what was imported is garbage-collected"
"""
    found = imported(project, run)
    assert "pytest" in found
    assert not {"hypothesis", "schemathesis"} & found
    assert Path(project.path, "tests/openapi/test_contract.py").exists()
