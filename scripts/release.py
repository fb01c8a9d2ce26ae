"""Release the template: go through the checklist, then tag the commit and record it.

    uv run python scripts/release.py 0.2.0

It stops at the first point that is not fulfilled, and changes nothing. Otherwise, it creates two
commits and a tag here, for you to push.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG, PYPROJECT, RELEASES = "CHANGELOG.md", "pyproject.toml", "releases.toml"
UNRELEASED = re.compile(r"^## Unreleased\n+(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


class NotFulfilledError(Exception):
    """A point of the checklist is not fulfilled, with the reason."""


def git(*arguments: str) -> str:
    """Run git in this repository and return its output. Raises NotFulfilledError."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        raise NotFulfilledError(done.stderr.strip() or f"git {arguments[0]} failed")
    return done.stdout.strip()


def read(name: str) -> str:
    """Return the text of a file in this repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def write(name: str, text: str) -> None:
    """Write a file in this repository."""
    (ROOT / name).write_text(text, encoding="utf-8")


# ---- The checklist ----


@dataclass(frozen=True)
class Release:
    """The release to make."""

    version: Version

    @property
    def tag(self) -> str:
        """Its tag in git."""
        return f"v{self.version}"

    def is_on_main(self) -> None:
        """The working tree is committed, on main."""
        if git("branch", "--show-current") != "main":
            raise NotFulfilledError("Releases are made on main: git checkout main")
        if changed := git("status", "--porcelain"):
            raise NotFulfilledError(f"Commit or stash this first:\n{changed}")

    def is_newer(self) -> None:
        """The version is newer than every release."""
        released = re.findall(r'^"v(.+?)" = ', read(RELEASES), re.MULTILINE)
        newest = max(map(Version, released), default=None)
        if newest and self.version <= newest:
            raise NotFulfilledError(f"{newest} is out; the next release must be newer.")
        if git("tag", "--list", self.tag):
            raise NotFulfilledError(f"The tag {self.tag} already exists; tags are never moved.")

    def has_news(self) -> None:
        """The changelog says what is new."""
        news = UNRELEASED.search(read(CHANGELOG))
        if not news or not news[1].strip():
            raise NotFulfilledError(f"{CHANGELOG} has nothing under `## Unreleased`.")

    def passes(self) -> None:
        """All tests pass, even the slow ones."""
        pytest = ["uv", "run", "--no-active", "pytest"]
        odd_texts = [*pytest, "--hypothesis-profile=slow", "tests/test_free_text.py"]
        for command in ([ROOT / ".ci/run"], [*pytest, "-m", "ci or slow"], odd_texts):
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                raise NotFulfilledError("They do not; see above.")

    def is_committed(self) -> None:
        """The version and the changelog are committed, and tagged."""
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        pyproject = re.sub(
            r'^version = ".*"$', f'version = "{self.version}"', read(PYPROJECT), flags=re.MULTILINE
        )
        write(PYPROJECT, pyproject)
        heading = f"## Unreleased\n\n## {self.version} ({today})\n"
        write(CHANGELOG, read(CHANGELOG).replace("## Unreleased\n", heading, 1))
        git("commit", "--all", "--quiet", "--message", f"Release {self.version}")
        git("tag", "--annotate", "--message", f"Release {self.version}", self.tag)

    def is_recorded(self) -> None:
        """The commit is recorded, so that tests find it without the tag."""
        commit = git("rev-parse", f"{self.tag}^{{commit}}")
        write(RELEASES, f'{read(RELEASES)}"{self.tag}" = "{commit}"\n')
        git("commit", "--all", "--quiet", "--message", f"Record release {self.version}")

    def checklist(self) -> list[Callable[[], None]]:
        """Return the points of the checklist, in order."""
        return [
            *(self.is_on_main, self.is_newer, self.has_news, self.passes),
            *(self.is_committed, self.is_recorded),
        ]


def version(text: str) -> Version:
    """Parse a version as PEP 440 defines it. Raises ArgumentTypeError."""
    try:
        return Version(text)
    except InvalidVersion as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version like 0.2.0") from error


def main() -> int:
    """Go through the checklist; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", type=version, help="as in PEP 440, without a v")
    release = Release(parser.parse_args().version)
    for point in release.checklist():
        print(f"* {point.__doc__}", flush=True)
        try:
            point()
        except NotFulfilledError as error:
            print(f"\n{error}\n\nThere is no release {release.version}.", file=sys.stderr)
            return 1
    print(
        f"\n{release.version} is ready. To publish it:  git push --atomic origin main {release.tag}"
        f"\nTo undo it before it is published:  "
        f"git tag --delete {release.tag} && git reset --hard HEAD~2"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
