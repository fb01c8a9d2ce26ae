"""Make the picture in the README: render a service, and run its tests.

    uv run python scripts/picture.py

These commands printed everything in the picture. The tests take about a minute.
"""

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/images/first-run.svg"
WIDTH = 96
FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)  # from another host
SAME_COLOR = re.compile(r"(?<=\.)\x1b\[0m\x1b\[32m(?=\.)")  # between two green dots
# The commands as the picture shows them, with shorter paths, and as they run.
COMMANDS = [
    ("uvx copier copy --defaults ADDRESS my-service", ["uvx", "copier", "copy", "--defaults"]),
    ("uv run pytest -q", ["uv", "run", "pytest", "-q", "--color=yes"]),
]


def run(command: list[str], cwd: Path) -> str:
    """Run a command that must succeed, and return its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, "COLUMNS": str(WIDTH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def main() -> None:
    """Run the commands and write the picture."""
    console = Console(record=True, width=WIDTH, file=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as directory:
        service = Path(directory) / "my-service"
        (copier, copy), (pytest, test) = COMMANDS
        run([*copy, "--quiet", "--vcs-ref=HEAD", str(ROOT), str(service)], ROOT)
        run(["uv", "sync", "--quiet"], service)
        said = SAME_COLOR.sub("", run(test, service))
    for command in (copier, f"cd my-service && {pytest}"):
        console.print(Text("$ ", style="bold green").append(command, style="bold default"))
    console.print(Text.from_ansi(said.strip()))
    svg = console.export_svg(title=f"{shlex.split(pytest)[2]}, in a new service")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(FONTS.sub("", svg), encoding="utf-8")


if __name__ == "__main__":
    main()
