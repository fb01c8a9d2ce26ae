"""The Dockerfile's steps, done by hand: the same files, the same commands, without Docker."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.rendering import Project, git, run
from tests.serving import free_port, serving

pytestmark = pytest.mark.xdist_group("default")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Read the instructions and their arguments, comments and line breaks apart."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


@pytest.fixture
def image(default_project: Project, tmp_path: Path) -> Path:
    """What is in /srv of the image."""
    image = tmp_path / "srv"
    image.mkdir()
    for name, arguments in instructions((default_project.path / "Dockerfile").read_text()):
        if name == "COPY" and not arguments.startswith("--from"):
            *sources, _ = arguments.split()
            for source in sources:
                copy = shutil.copytree if (default_project.path / source).is_dir() else shutil.copy
                copy(default_project.path / source, image / source)
        sync = re.search(r"uv sync\b[^&|;]*", arguments)
        if name == "RUN" and sync:
            done = run(*sync[0].split(), cwd=image)
            assert done.returncode == 0, done.stdout
    return image


def test_the_image_migrates_serves_and_is_healthy(
    image: Path, default_project: Project, tmp_path: Path
) -> None:
    dockerfile = dict(instructions((default_project.path / "Dockerfile").read_text()))
    port = str(free_port())
    command = json.loads(dockerfile["CMD"].replace("8000", port))
    probe = json.loads(dockerfile["HEALTHCHECK"].split("CMD ")[1].replace("8000", port))
    env = {
        "PATH": f"{image / '.venv/bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "ENVIRONMENT": "production",
        "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/service.db",
        "SECRET_KEY": "a-key-that-nobody-else-knows-0123456789",
    }

    assert "ENVIRONMENT=production" in dockerfile["ENV"]
    assert not list(image.glob(".venv/**/pytest"))
    migrated = run("alembic", "upgrade", "head", cwd=image, env=env)
    assert migrated.returncode == 0, migrated.stdout
    assert run(*probe, cwd=image, env=env).returncode != 0
    with serving(*command, cwd=image, port=int(port), log=tmp_path / "log", env=env) as server:
        healthy = run(*probe, cwd=image, env=env)
        assert healthy.returncode == 0, healthy.stdout
        assert "Traceback" not in server.stop()


def test_the_image_has_no_rights_no_secrets_and_a_lock(default_project: Project) -> None:
    steps = instructions((default_project.path / "Dockerfile").read_text())
    assert steps.index(("USER", "10001")) > max(i for i, s in enumerate(steps) if s[0] == "RUN")
    assert sum(name == "FROM" for name, _ in steps) == 2
    assert any("uv sync --locked --no-dev" in arguments for _, arguments in steps)


def test_docker_is_given_what_it_copies_and_nothing_else(
    default_project: Project, tmp_path: Path
) -> None:
    # The rules of .dockerignore are git's, but for the root: git can say what is left out.
    rules = (default_project.path / ".dockerignore").read_text().replace("*\n", "/*\n", 1)
    git("init", "--quiet", cwd=tmp_path)
    (tmp_path / ".git/info/exclude").write_text(rules)
    names = ["pyproject.toml", "uv.lock", "app/main.py", "migrations/env.py"]
    secrets = [".env", ".env.production", "app/.env", "service.db", ".git2/x", "tests/conftest.py"]
    for name in [*names, *secrets, ".venv/bin/python", "app/__pycache__/main.cpython-311.pyc"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = git("ls-files", "--others", "--exclude-standard", cwd=tmp_path).splitlines()
    assert sorted(given) == sorted(names)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_compose_migrates_first_and_passes_all_settings(
    database: str, rendered: Callable[..., Path]
) -> None:
    project = rendered(database=database)
    compose = yaml.safe_load((project / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"migrations", "service"} | (
        {"database"} if database == "postgresql" else set()
    )
    assert services["service"]["depends_on"]["migrations"] == {
        "condition": "service_completed_successfully"
    }
    if database == "postgresql":
        assert services["migrations"]["depends_on"]["database"] == {"condition": "service_healthy"}
    for name in ("migrations", "service"):
        assert services[name]["env_file"] == [{"path": ".env", "required": False}]
        assert set(services[name]["environment"]) == {"ENVIRONMENT", "DATABASE_URL"}
        assert services[name]["environment"]["DATABASE_URL"].startswith(database)
    # The database cannot be reached from outside, nor with a password that others know.
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"service": ["127.0.0.1:8000:8000"]}
    if database == "postgresql":
        password = services["database"]["environment"]["POSTGRES_PASSWORD"]
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", password)
        assert ":${POSTGRES_PASSWORD}@" in services["service"]["environment"]["DATABASE_URL"]
        assert "\n# POSTGRES_PASSWORD=\n" in (project / ".env.example").read_text()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_linters_of_docker_find_nothing(database: str, rendered: Callable[..., Path]) -> None:
    project = rendered(database=database)
    tools = Path(sys.executable).parent
    for command in (
        (tools / "hadolint", "Dockerfile"),
        (tools / "check-jsonschema", "--builtin-schema=vendor.compose-spec", "compose.yaml"),
    ):
        done = run(*command, cwd=project)
        assert done.returncode == 0, done.stdout
