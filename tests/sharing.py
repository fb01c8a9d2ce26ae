"""What the workers of one run share: each thing is made once, by the first who needs it."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALLED = "installed"
"""The file that names the projects that were installed, one a line."""


class Shared:
    """What is shared."""

    directory: Path
    """Of this run; tests/conftest.py sets it."""

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the directory of this name, after `make` has filled it in this or another worker.

        What `make` raises, it raises in each worker that needs the place.
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
        """Keep the other workers out."""
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
