"""A service without the settings that it needs says so, and does not start."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.core import config
from app.core.config import ROOT, CoreSettings, ServiceSettings, load_settings
from app.main import create_app

EXAMPLE = (ROOT / ".env.example").read_text()
DATABASE_URL = EXAMPLE.split("DATABASE_URL=")[1].splitlines()[0]
COMPLETE = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": DATABASE_URL,
    "SECRET_KEY": "not-the-key-of-any-service-that-runs",
}


@pytest.fixture(autouse=True)
def fresh_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's directory, and an environment without variables."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    for field in CoreSettings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    return tmp_path


@pytest.fixture
def complete_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with all required variables."""
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("complete_environment")
def test_settings_come_from_the_environment() -> None:
    settings = load_settings(CoreSettings)
    assert settings.database_url == DATABASE_URL
    assert settings.secret_key == SecretStr(COMPLETE["SECRET_KEY"])
    assert settings.log_level == "INFO"


@pytest.mark.usefixtures("complete_environment")
def test_key_is_asked_for_where_something_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY")
    assert load_settings(ServiceSettings).database_url == DATABASE_URL
    with pytest.raises(SystemExit, match="SECRET_KEY: is missing"):
        load_settings(CoreSettings)


def test_settings_come_from_the_env_file(fresh_checkout: Path) -> None:
    lines = [f"{name}={value}" for name, value in COMPLETE.items()]
    (fresh_checkout / ".env").write_text("\n".join(lines))
    assert load_settings(CoreSettings).environment == "production"


def test_fresh_checkout_runs_with_the_example(fresh_checkout: Path) -> None:
    (fresh_checkout / ".env.example").write_text(EXAMPLE)
    assert load_settings(CoreSettings).environment == "development"


def test_tests_do_not_read_the_env_file(
    fresh_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "test")
    (fresh_checkout / ".env").write_text("LOG_LEVEL=DEBUG")
    (fresh_checkout / ".env.example").write_text(EXAMPLE)
    assert load_settings(CoreSettings).log_level == "INFO"


def test_deployed_service_does_not_read_the_example(
    fresh_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh_checkout / ".env.example").write_text(EXAMPLE)
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SystemExit) as stopped:
        load_settings(CoreSettings)
    assert "DATABASE_URL: is missing" in str(stopped.value)
    assert "SECRET_KEY: is missing" in str(stopped.value)


@pytest.mark.usefixtures("complete_environment")
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ENVIRONMENT", "moon", "'development', 'test', 'staging' or 'production'"),
        ("LOG_LEVEL", "loud", "'DEBUG'"),
        ("SECRET_KEY", "short", "at least 32"),
        ("SECRET_KEY", "change-me-this-key-is-known-to-everybody", "placeholder"),
        ("DATABASE_URL", "", "is missing"),
        ("DATABASE_URL", "not a url", "asyncio driver"),
        ("DATABASE_URL", "oracle://host/name", "asyncio driver"),
        ("DATABASE_URL", "mysql+asyncmy://host/name", "asyncio driver"),
        ("DATABASE_URL", "sqlite:///./app.db", "asyncio driver"),
        ("ALLOWED_HOSTS", "https://api.example.com", "host names"),
        ("ALLOWED_HOSTS", "api.example.com:8000", "host names"),
        ("ALLOWED_HOSTS", "api.*.com", "host names"),
        ("ALLOWED_HOSTS", "api.example.com,", "host names"),
        ("CORS_ORIGINS", "app.example.com", "origins"),
        ("CORS_ORIGINS", "https://app.example.com/", "origins"),
    ],
)
def test_wrong_setting_is_named_with_what_it_should_be(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=rf"{variable}: .*{reason}"):
        load_settings(CoreSettings)


@pytest.mark.usefixtures("complete_environment")
def test_lists_have_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "localhost, *.example.com")
    monkeypatch.setenv("CORS_ORIGINS", "https://app.example.com,http://localhost:3000")
    settings = load_settings(CoreSettings)
    assert settings.allowed_hosts == ("localhost", "*.example.com")
    assert settings.cors_origins == ("https://app.example.com", "http://localhost:3000")


@pytest.mark.usefixtures("complete_environment")
def test_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "too-short-a-secret")
    with pytest.raises(SystemExit) as stopped:
        load_settings(CoreSettings)
    assert "too-short-a-secret" not in str(stopped.value)


def test_service_without_settings_exits_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SystemExit, match="DATABASE_URL: is missing"):
        create_app()


@pytest.mark.usefixtures("complete_environment")
def test_password_of_the_database_is_not_shown() -> None:
    settings = load_settings(ServiceSettings)
    assert settings.database_url == DATABASE_URL
    assert DATABASE_URL not in repr(settings) + str(settings)
