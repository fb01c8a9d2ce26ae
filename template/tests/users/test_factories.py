"""The factory of users: made-up rows in the test's own database."""

import random

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.models import User
from tests.users.factories import UserFactory


@pytest.mark.parametrize("run", [1, 2])
async def test_users_of_the_factory_are_gone_after_the_test(
    db_session: AsyncSession, user_factory: type[UserFactory], run: int
) -> None:
    number_of_users = select(func.count()).select_from(User)
    assert await db_session.scalar(number_of_users) == 0
    await user_factory.create_batch_async(3)
    assert await db_session.scalar(number_of_users) == 3


async def test_factory_of_a_test_leaves_the_one_of_all_tests_alone(
    user_factory: type[UserFactory],
) -> None:
    await user_factory.create_async()
    assert UserFactory.__async_session__ is None


def test_random_values_come_from_the_seed_of_the_run(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.pluginmanager.hasplugin("randomly"):
        pytest.skip("pytest-randomly is off")
    assert UserFactory.__random__.getstate() == random.getstate()
