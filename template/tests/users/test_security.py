"""Passwords: the cost of a hash, where it is computed, and how many run at once."""

import threading
from unittest.mock import patch

import anyio
from anyio.lowlevel import checkpoint
from anyio.to_thread import current_default_thread_limiter
from pwdlib import PasswordHash

from app.settings import Settings
from app.users.security import Passwords
from tests.http_client import AsyncClient


async def test_hash_is_of_its_password_alone(settings: Settings) -> None:
    passwords = Passwords(settings)
    password_hash = await passwords.hash("one password")
    assert await passwords.verify("one password", password_hash)
    assert not await passwords.verify("another password", password_hash)


async def test_settings_say_what_a_hash_costs(settings: Settings) -> None:
    dearer = settings.model_copy(update={"argon2_memory_kib": 64, "argon2_time_cost": 2})
    assert "$m=32,t=1," in await Passwords(settings).hash("password")
    assert "$m=64,t=2," in await Passwords(dearer).hash("password")


def test_hashes_cost_what_rfc_9106_recommends_unless_set() -> None:
    fields = Settings.model_fields
    assert fields["argon2_memory_kib"].default == 64 * 1024
    assert fields["argon2_time_cost"].default == 3


async def test_hashing_leaves_the_event_loop_to_others(settings: Settings) -> None:
    threads: list[int] = []

    def note_thread(*_: object) -> None:
        threads.append(threading.get_ident())

    with patch.multiple(PasswordHash, hash=note_thread, verify=note_thread):
        await Passwords(settings).hash("password")
        await Passwords(settings).verify("password", "its hash")
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_only_so_many_hashes_are_computed_at_once(settings: Settings) -> None:
    passwords = Passwords(settings.model_copy(update={"argon2_concurrency": 3}))
    go_on = threading.Event()

    def wait(*_: object) -> None:
        go_on.wait(5)

    with patch.multiple(PasswordHash, hash=wait, verify=wait):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(passwords.hash, "password")
                tasks.start_soon(passwords.verify, "password", "its hash")
            with anyio.fail_after(5):
                while passwords.limiter.statistics().tasks_waiting < 5:
                    await checkpoint()
            limiter = passwords.limiter.statistics()
            go_on.set()
    assert (limiter.borrowed_tokens, limiter.tasks_waiting) == (3, 5)


async def test_only_hashes_wait_for_threads(client: AsyncClient) -> None:
    threads = current_default_thread_limiter()
    busy = [object() for _ in range(int(threads.available_tokens))]
    for each in busy:
        threads.acquire_on_behalf_of_nowait(each)
    try:
        with anyio.fail_after(5):
            assert (await client.get("/users/me")).status_code == 401
            assert (await client.get("/readyz")).status_code == 200
            form = {"username": "ada@example.com", "password": "password"}
            assert (await client.post("/token", data=form)).status_code == 401
    finally:
        for each in busy:
            threads.release_on_behalf_of(each)
