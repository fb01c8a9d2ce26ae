"""Passwords: what a hash costs, and where it is computed."""

import threading
from unittest.mock import patch

from pwdlib import PasswordHash

from app.settings import Settings
from app.users.security import hash_password, verify_password


async def test_hash_is_of_its_password_alone(settings: Settings) -> None:
    password_hash = await hash_password("one password", settings)
    assert await verify_password("one password", password_hash, settings)
    assert not await verify_password("another password", password_hash, settings)


async def test_settings_say_what_a_hash_costs(settings: Settings) -> None:
    dearer = settings.model_copy(update={"argon2_memory_kib": 64, "argon2_time_cost": 2})
    assert "$m=32,t=1," in await hash_password("password", settings)
    assert "$m=64,t=2," in await hash_password("password", dearer)


def test_hashes_cost_what_rfc_9106_recommends_unless_set() -> None:
    fields = Settings.model_fields
    assert fields["argon2_memory_kib"].default == 64 * 1024
    assert fields["argon2_time_cost"].default == 3


async def test_hashing_leaves_the_event_loop_to_others(settings: Settings) -> None:
    threads: list[int] = []

    def note_thread(*_: object) -> None:
        threads.append(threading.get_ident())

    with patch.multiple(PasswordHash, hash=note_thread, verify=note_thread):
        await hash_password("password", settings)
        await verify_password("password", "its hash", settings)
    assert len(threads) == 2
    assert threading.get_ident() not in threads
