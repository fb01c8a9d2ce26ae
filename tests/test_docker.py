"""The Dockerfile's steps without Docker: the same files and the same commands."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import with_projects
from tests.rendering import ROOT, Project, git, new_directory, run
from tests.serving import free_port, serving
from tests.sharing import shared


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions and their arguments, without comments and line breaks."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


@dataclass(frozen=True)
class Image:
    """The contents of an image's /srv, which nobody may write to, and its Dockerfile."""

    srv: Path
    dockerfile: dict[str, str]

    def env(self, database_url: str) -> dict[str, str]:
        said = dict(pair.split("=", 1) for pair in self.dockerfile["ENV"].split())
        path = said["PATH"].replace("/srv", str(self.srv)).replace("$PATH", "/usr/bin:/bin")
        key = "a-key-that-nobody-else-knows-0123456789"
        return {**said, "PATH": path, "DATABASE_URL": database_url, "SECRET_KEY": key}

    def command(self, text: str, port: int) -> list[str]:
        """Return a command of the Dockerfile as an unprivileged user runs it, on this port."""
        name, *arguments = json.loads(text.replace("8000", str(port)))
        return [*AS_NOBODY, str(self.srv / ".venv/bin" / name), *arguments]


# Root becomes the image's user, who may also read root's home, because Python may be there.
AS_NOBODY = (
    [
        *("setpriv", "--reuid=10001", "--regid=10001", "--clear-groups"),
        *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
        "--bounding-set=-all,+dac_read_search",
    ]
    if os.getuid() == 0
    else []
)


@pytest.fixture
def image(project: Project) -> Iterator[Image]:
    """The image of a project, built by hand."""
    steps = instructions((project.path / "Dockerfile").read_text())
    with new_directory("image") as directory:
        srv = directory / "srv"
        srv.mkdir()
        for name, arguments in steps:
            if name == "COPY" and not arguments.startswith("--from"):
                *sources, _ = arguments.split()
                for source in sources:
                    copy = shutil.copytree if (project.path / source).is_dir() else shutil.copy
                    copy(project.path / source, srv / source)
            sync = re.search(r"uv sync\b[^&|;]*", arguments)
            if name == "RUN" and sync:
                shared.note_installed(srv)
                done = run(*sync[0].split(), cwd=srv, env={"UV_LINK_MODE": "copy"})
                assert done.returncode == 0, done.stdout
        assert run("chmod", "-R", "a-w,a+rX", ".", cwd=directory).returncode == 0
        yield Image(srv, dict(steps))
        run("chmod", "-R", "u+w", ".", cwd=directory)


@with_projects("postgresql", ci=["default"])
def test_the_image_migrates_serves_and_is_healthy(
    image: Image, project: Project, tmp_path: Path
) -> None:
    port = free_port()
    probe = image.command(image.dockerfile["HEALTHCHECK"].split("CMD ")[1], port)
    migrate = image.command('["alembic", "upgrade", "head"]', port)
    with project.new_database() as url:
        if project.database == "sqlite":
            Path(url.removeprefix("sqlite+aiosqlite:///")).parent.chmod(0o777)
        env = image.env(url)
        assert env["ENVIRONMENT"] == "production"
        assert not list(image.srv.glob(".venv/**/pytest"))
        touched = run(*AS_NOBODY, "touch", "app/main.py", "app/new.py", cwd=image.srv)
        assert touched.stdout.count("Permission denied") == 2
        migrated = run(*migrate, cwd=image.srv, env=env)
        assert migrated.returncode == 0, migrated.stdout
        assert run(*probe, cwd=image.srv, env=env).returncode != 0
        command = image.command(image.dockerfile["CMD"], port)
        with serving(*command, cwd=image.srv, port=port, log=tmp_path / "log", env=env) as server:
            assert httpx.get(f"{server.url}/readyz").status_code == 200
            healthy = run(*probe, cwd=image.srv, env=env)
            assert healthy.returncode == 0, healthy.stdout
            said = server.stop()
        assert "Application shutdown complete" in said
        assert "Traceback" not in said
        assert server.process.returncode in {0, -15}


def test_the_image_has_no_rights_no_secrets_and_a_lock(default_project: Project) -> None:
    steps = instructions((default_project.path / "Dockerfile").read_text())
    assert steps.index(("USER", "10001")) > max(i for i, s in enumerate(steps) if s[0] == "RUN")
    assert any("uv sync --locked --no-dev" in arguments for _, arguments in steps)
    # Each image has a fixed version, and the last one only gets files that are copied by name.
    *build, last = (arguments for name, arguments in steps if name == "FROM")
    assert re.fullmatch(r"python:\d\.\d+-slim-[a-z]+", last)
    assert build[-1] == f"{last} AS build"
    assert re.fullmatch(r"ghcr\.io/astral-sh/uv:\d+\.\d+\.\d+ AS uv", build[0])
    # Dependencies are installed before the code is copied, so only again when they change.
    code = steps.index(("COPY", "app app"))
    assert not any(name == "RUN" for name, _ in steps[code:])


def test_docker_is_given_what_it_copies_and_nothing_else(
    default_project: Project, tmp_path: Path
) -> None:
    # The rules of .dockerignore are git's, except for the root, so git can tell what is ignored.
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
    is_postgresql = database == "postgresql"
    running = {"service", "worker"} if is_postgresql else {"service"}
    assert set(services) == {"migrations"} | running | (
        {"database", "proxy"} if is_postgresql else set()
    )
    for name in running:
        assert services[name]["depends_on"]["migrations"] == {
            "condition": "service_completed_successfully"
        }
    if is_postgresql:
        assert services["migrations"]["depends_on"]["database"] == {"condition": "service_healthy"}
    for name in ("migrations", *running):
        assert services[name]["env_file"] == [{"path": ".env", "required": False}]
        assert {"ENVIRONMENT", "DATABASE_URL"} <= set(services[name]["environment"])
        assert services[name]["environment"]["DATABASE_URL"].startswith(database)
    # They run without privileges, and have time to stop before they are killed.
    for name in ("migrations", *running):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        assert services[name]["tmpfs"] == ["/tmp"]
    [timeout] = re.findall(r"_GRACEFUL_SHUTDOWN=(\d+)", (project / "Dockerfile").read_text())
    for name in running:
        assert int(timeout) < int(services[name]["stop_grace_period"].removesuffix("s"))
    # On SQLite, jobs are in memory, and replicas would share a file, so there is one process.
    replicas = services["service"].get("deploy", {}).get("replicas", 1)
    assert replicas == (2 if is_postgresql else 1)
    # The database cannot be reached from outside, or with a password that others know.
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"proxy" if is_postgresql else "service": ["127.0.0.1:8000:8000"]}
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


def test_the_manifests_for_kubernetes_are_valid() -> None:
    manifests = ROOT / "docs/kubernetes.yaml"
    done = run(Path(sys.executable).parent / "kubernetes-validate", "--strict", manifests, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in yaml.safe_load_all(manifests.read_text(encoding="utf-8"))
        if "template" in each["spec"]
    }
    assert set(pods) == {"my-service-migrations", "my-service", "my-service-worker"}
    dockerfile = (ROOT / "template/Dockerfile.jinja").read_text(encoding="utf-8")
    [timeout] = map(int, re.findall(r"_GRACEFUL_SHUTDOWN=(\d+)", dockerfile))
    for name, pod in pods.items():
        [container] = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        if name != "my-service-migrations":
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            grace = pod["terminationGracePeriodSeconds"]
            assert grace > sleep.get("seconds", 0) + timeout
    # The worker has the same probe as in compose.yaml.
    compose = (ROOT / "template/compose.yaml.jinja").read_text(encoding="utf-8")
    [worker] = pods["my-service-worker"]["containers"]
    assert worker["livenessProbe"]["exec"]["command"][-1] in compose
