"""Users for tests."""

from itertools import count

from polyfactory import Ignore, Use
from polyfactory.factories.sqlalchemy_factory import SQLAlchemyFactory
from pwdlib.hashers.argon2 import Argon2Hasher

from app.users.models import User

PASSWORD = "correct horse battery staple"
PASSWORD_HASH = Argon2Hasher(time_cost=1, memory_cost=32).hash(PASSWORD)

numbers = count(1)


class UserFactory(SQLAlchemyFactory[User]):
    """Creates users who log in with PASSWORD. The `user_factory` fixture binds it to a session."""

    # The database generates the keys: random ones would collide one day.
    __set_primary_key__ = False

    email = Use(lambda: f"user{next(numbers)}@example.com")
    password_hash = PASSWORD_HASH
    created_at = Ignore()
    welcomed_at = None
