"""What the workers of a run share: the first worker that needs something makes it."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALLED = "installed"
"""The file that lists the installed projects, one per line."""


class Shared:
    """Directories that the workers share."""

    directory: Path
    """The directory of this run; tests/conftest.py sets it."""

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the directory `name`, after `make` has filled it in this or another worker.

        If `make` fails, raises an error in each worker that needs the directory.
        """
        place = self.directory / name
        done, failed = place.with_name(f"{name}.done"), place.with_name(f"{name}.failed")
        with self.locked(name):
            if failed.exists():
                raise AssertionError(failed.read_text(encoding="utf-8"))
            if not done.exists():
                try:
                    place.mkdir()
                    make(place)
                except BaseException as error:
                    failed.write_text(f"{name} could not be made: {error}", encoding="utf-8")
                    raise
                done.touch()
        return place

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Let other workers wait until the context ends."""
        with (self.directory / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def note_installed(self, project: Path) -> None:
        """Note that a project was installed."""
        with self.locked(INSTALLED), (self.directory / INSTALLED).open("a") as file:
            file.write(f"{project}\n")

    def count_installed(self) -> int:
        """Return how many projects were installed."""
        file = self.directory / INSTALLED
        return len(file.read_text().splitlines()) if file.exists() else 0


shared = Shared()
