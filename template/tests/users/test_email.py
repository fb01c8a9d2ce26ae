"""E-mail, sent to a real SMTP server that runs in the test's event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from dirty_equals import IsStr
from pydantic import SecretStr, ValidationError

from app.settings import Settings
from app.users.email import EmailNotSentError, SmtpSender, make_email_sender
from tests.harness.asgi import RunningApp
from tests.harness.jobs import JobQueue
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD

LETTER = {"to": "ada@example.com", "subject": "Welcome", "text": "Hello, Ada!\n"}


@dataclass
class Mailbox:
    """The e-mails that the SMTP server has accepted, and what it refuses."""

    port: int = 0
    envelopes: list[Envelope] = field(default_factory=list)
    log_ins: list[tuple[bytes, bytes]] = field(default_factory=list)
    is_full: bool = False
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.is_full:
            return "452 Insufficient system storage"
        self.envelopes.append(envelope)
        return "250 OK"

    def authenticate(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        mechanism: str,
        data: LoginPassword,
    ) -> AuthResult:
        self.log_ins.append((data.login, data.password))
        return AuthResult(success=True)

    def letter(self) -> EmailMessage:
        """The only e-mail that has arrived."""
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        return message_from_bytes(envelope.content, policy=policy.default)


class Connection(SMTP):
    """A connection of the server; it reports when it has ended."""

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.event_handler.hung_up.set()


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    """The mailbox of an SMTP server on its own port."""
    loop = asyncio.get_running_loop()
    mailbox = Mailbox()

    def protocol() -> SMTP:
        return Connection(
            mailbox,
            hostname="localhost",
            authenticator=mailbox.authenticate,
            auth_require_tls=False,
            loop=loop,
        )

    async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
        mailbox.port = server.sockets[0].getsockname()[1]
        yield mailbox


@pytest.fixture
def smtp_settings(settings: Settings, mailbox: Mailbox) -> Settings:
    """Settings that name the SMTP server."""
    return settings.model_copy(
        update={
            "smtp_host": "127.0.0.1",
            "smtp_port": mailbox.port,
            "smtp_security": "none",
            "email_from": "service@example.com",
        }
    )


async def test_smtp_server_takes_the_email(mailbox: Mailbox, smtp_settings: Settings) -> None:
    await SmtpSender(smtp_settings).send(**LETTER)
    headers = {name: str(value) for name, value in mailbox.letter().items()}
    assert headers == {
        "From": "service@example.com",
        "To": "ada@example.com",
        "Subject": "Welcome",
        "Date": IsStr,
        "Message-ID": IsStr(regex="<.+@example.com>"),
        "Content-Type": 'text/plain; charset="utf-8"',
        "Content-Transfer-Encoding": "7bit",
        "MIME-Version": "1.0",
    }
    assert mailbox.letter().get_content() == "Hello, Ada!\r\n"


async def test_smtp_server_is_told_the_user_name_and_password(
    mailbox: Mailbox, smtp_settings: Settings
) -> None:
    login = {"smtp_username": "service", "smtp_password": SecretStr("its password")}
    await SmtpSender(smtp_settings.model_copy(update=login)).send(**LETTER)
    assert mailbox.log_ins == [(b"service", b"its password")]


async def test_full_mailbox_is_an_error(mailbox: Mailbox, smtp_settings: Settings) -> None:
    mailbox.is_full = True
    with pytest.raises(EmailNotSentError, match="Insufficient system storage"):
        await SmtpSender(smtp_settings).send(**LETTER)


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_server_without_tls_is_an_error_unless_the_settings_allow_it(
    mailbox: Mailbox, smtp_settings: Settings, security: str
) -> None:
    sender = SmtpSender(smtp_settings.model_copy(update={"smtp_security": security}))
    with pytest.raises(EmailNotSentError):
        await sender.send(**LETTER)
    await mailbox.hung_up.wait()
    assert mailbox.envelopes == []


async def test_server_that_does_not_answer_is_an_error(smtp_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EmailNotSentError):
        await SmtpSender(smtp_settings.model_copy(update={"smtp_port": port})).send(**LETTER)


@pytest.mark.parametrize("part", ["to", "subject"])
async def test_line_break_cannot_add_a_header(
    mailbox: Mailbox, smtp_settings: Settings, part: str
) -> None:
    with pytest.raises(ValueError, match="linefeed"):
        await SmtpSender(smtp_settings).send(**{**LETTER, part: "x\r\nBcc: bob@example.com"})
    assert mailbox.envelopes == []


async def test_sign_up_sends_to_the_server_that_the_settings_name(
    client: AsyncClient,
    running_app: RunningApp,
    job_queue: JobQueue,
    mailbox: Mailbox,
    smtp_settings: Settings,
) -> None:
    running_app.lifespan_state["email_sender"] = make_email_sender(smtp_settings)
    await client.post("/users", json={"email": "ada@example.com", "password": PASSWORD})
    await job_queue.run()
    assert mailbox.letter()["To"] == "ada@example.com"


async def test_without_a_server_email_is_printed_while_it_is_developed(
    settings: Settings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sender = make_email_sender(settings)
    await sender.send(**LETTER)
    assert "ada@example.com" in capsys.readouterr().out
    assert caplog.text == ""


@pytest.mark.parametrize("environment", ["staging", "production"])
async def test_without_a_server_no_email_is_sent_where_the_service_is_deployed(
    settings: Settings, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = make_email_sender(settings.model_copy(update={"environment": environment}))
    with pytest.raises(EmailNotSentError, match="SMTP_HOST is not set"):
        await sender.send(**LETTER)
    assert capsys.readouterr().out == ""


async def test_server_without_a_sender_address_is_refused(settings: Settings) -> None:
    values = settings.model_dump() | {"smtp_host": "localhost", "email_from": None}
    with pytest.raises(ValidationError, match="EMAIL_FROM"):
        Settings(_env_file=None, **values)
