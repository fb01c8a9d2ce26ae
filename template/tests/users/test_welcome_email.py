"""The welcome e-mail: a job, which a sign-up writes and a worker runs."""

from datetime import UTC, datetime
from unittest.mock import ANY, AsyncMock

import pytest
from dirty_equals import IsNow
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.email import EmailNotSentError
from app.users.jobs import send_welcome
from app.users.models import User
from tests.harness.jobs import JobQueue
from tests.http_client import AsyncClient
from tests.users.factories import PASSWORD

ADA = {"email": "ada@example.com", "password": PASSWORD}


async def test_sign_up_writes_the_job(client: AsyncClient, job_queue: JobQueue) -> None:
    response = await client.post("/users", json=ADA)
    assert await job_queue.written(send_welcome) == [{"user_id": response.json()["id"]}]


@pytest.mark.parametrize("run", [1, 2])
async def test_jobs_are_gone_after_the_test(
    client: AsyncClient, job_queue: JobQueue, run: int
) -> None:
    assert await job_queue.written(send_welcome) == []
    await client.post("/users", json=ADA)


async def test_sign_up_that_is_refused_writes_none(
    client: AsyncClient, job_queue: JobQueue, user: User
) -> None:
    await client.post("/users", json={**ADA, "email": user.email})
    assert await job_queue.written(send_welcome) == []


async def test_job_is_gone_with_the_transaction_that_wrote_it(
    job_queue: JobQueue, db_session: AsyncSession, user: User
) -> None:
    await send_welcome.enqueue(db_session, user_id=user.id)
    await db_session.rollback()
    assert await job_queue.written(send_welcome) == []


async def test_job_sends_the_e_mail(
    client: AsyncClient, job_queue: JobQueue, email_sender: AsyncMock
) -> None:
    await client.post("/users", json=ADA)
    email_sender.send.assert_not_awaited()
    await job_queue.run()
    email_sender.send.assert_awaited_once_with("ada@example.com", "Welcome", ANY)
    assert await job_queue.written(send_welcome) == []


async def test_job_writes_its_time_to_the_database(
    client: AsyncClient, job_queue: JobQueue, db_session: AsyncSession
) -> None:
    await client.post("/users", json=ADA)
    await job_queue.run()
    assert await db_session.scalar(select(User.welcomed_at)) == IsNow(tz="UTC", delta=30)


async def test_job_that_fails_raises_in_the_test_and_waits(
    client: AsyncClient, job_queue: JobQueue, email_sender: AsyncMock, db_session: AsyncSession
) -> None:
    email_sender.send.side_effect = EmailNotSentError("the server is on fire")
    await client.post("/users", json=ADA)
    with pytest.raises(EmailNotSentError):
        await job_queue.run()
    assert len(await job_queue.written(send_welcome)) == 1
    assert (await db_session.scalars(select(User))).one().welcomed_at is None


async def test_job_that_runs_twice_sends_one_e_mail(
    job_queue: JobQueue, email_sender: AsyncMock, db_session: AsyncSession, user: User
) -> None:
    user.welcomed_at = datetime.now(UTC)
    await send_welcome.enqueue(db_session, user_id=user.id)
    await db_session.commit()
    await job_queue.run()
    email_sender.send.assert_not_awaited()


async def test_account_that_is_gone_gets_no_e_mail(
    job_queue: JobQueue, email_sender: AsyncMock, db_session: AsyncSession, user: User
) -> None:
    await send_welcome.enqueue(db_session, user_id=user.id)
    await db_session.delete(user)
    await db_session.commit()
    await job_queue.run()
    email_sender.send.assert_not_awaited()
