"""E-mail: by SMTP if the settings name a server, or printed in development."""

import sys
from abc import ABC, abstractmethod
from email.message import EmailMessage
from email.utils import localtime, make_msgid

import aiosmtplib

from app.settings import Settings

TIMEOUT = 10.0  # seconds


class EmailNotSentError(Exception):
    """The mail server was not reached, or refused the e-mail."""


class EmailSender(ABC):
    """Sends plain-text e-mail."""

    @abstractmethod
    async def send(self, to: str, subject: str, text: str) -> None:
        """Send an e-mail to one address. Raises EmailNotSentError."""


class ConsoleSender(EmailSender):
    """Prints e-mail in development. Logs must not contain addresses or texts."""

    async def send(self, to: str, subject: str, text: str) -> None:
        """Print the e-mail."""
        sys.stdout.write(f"No SMTP_HOST, so this is not sent to {to}: {subject}\n{text}")
        sys.stdout.flush()


class NoSender(EmailSender):
    """Sends nothing, because the service is deployed and the settings name no server."""

    async def send(self, to: str, subject: str, text: str) -> None:
        """Raise EmailNotSentError."""
        raise EmailNotSentError("SMTP_HOST is not set")


class SmtpSender(EmailSender):
    """Sends e-mail through the SMTP server in the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def send(self, to: str, subject: str, text: str) -> None:
        """Send the e-mail. Raises EmailNotSentError, or ValueError for a line break in a header."""
        sender = str(self._settings.email_from)
        message = EmailMessage()
        message["From"] = sender
        message["To"] = to
        message["Subject"] = subject
        message["Date"] = localtime()
        message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
        message.set_content(text)
        password = self._settings.smtp_password
        try:
            await aiosmtplib.send(
                message,
                recipients=[to],
                hostname=self._settings.smtp_host,
                port=self._settings.smtp_port,
                username=self._settings.smtp_username,
                password=password.get_secret_value() if password else None,
                start_tls=self._settings.smtp_security == "starttls",
                use_tls=self._settings.smtp_security == "tls",
                timeout=TIMEOUT,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise EmailNotSentError(str(error)) from error


def make_email_sender(settings: Settings) -> EmailSender:
    """Return the sender for these settings."""
    if settings.smtp_host:
        return SmtpSender(settings)
    return NoSender() if settings.is_deployed else ConsoleSender()
