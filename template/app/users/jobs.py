"""The jobs of users: work that follows a sign-up and survives a crash."""

from datetime import UTC, datetime

from app.core.jobs import JobContext, job
from app.users.email import EmailSender
from app.users.models import User


@job()
async def send_welcome(context: JobContext, user_id: int) -> None:
    """Send the welcome e-mail and store when. Raises EmailNotSentError, and then runs again.

    A worker may die between the two, so the e-mail may rarely go out twice.
    """
    sender: EmailSender = context.state["email_sender"]
    async with context.session_factory() as session:
        user = await session.get(User, user_id)
        if user is None or user.welcomed_at is not None:
            return
        await session.commit()  # to hold no database connection while the mail server responds
        await sender.send(user.email, "Welcome", "Your account is ready.\n")
        user.welcomed_at = datetime.now(UTC)
        await session.commit()
