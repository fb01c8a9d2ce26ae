"""Follow the documentation: write its files, and run its commands."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.rendering import ROOT, run, start
from tests.serving import free_port, serving

BLOCK = re.compile(
    r"(?P<comments>(?:^ *<!--.*?-->\n+)*)"
    r"^(?P<indent> *)```(?P<language>\w*) *(?P<attributes>.*?)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
DIRECTIVE = re.compile(r"<!-- (not run|run by|fails|only|server)(?:: (.*?))? -->", re.DOTALL)
COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: a file, a change to a file, commands, or their output."""

    page: str
    line: int
    language: str
    title: str | None
    text: str
    directives: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(text: str, page: str) -> list[Block]:
    """Return the blocks of a page, with the comments before them that say how to run them."""
    return [
        Block(
            page,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            title=next(iter(re.findall(r'title="(.+?)"', found["attributes"])), None),
            text=re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            directives={
                name: " ".join((value or "").split())
                for name, value in DIRECTIVE.findall(found["comments"])
            },
        )
        for found in BLOCK.finditer(text)
    ]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page in this repository."""
    return read_blocks((ROOT / page).read_text(encoding="utf-8"), page)


@dataclass
class Reader:
    """Somebody who follows a page, in a directory."""

    cwd: Path
    database: str
    env: dict[str, str]
    said: str = ""
    commands: int = 0
    _servers: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    def follow(self, blocks: list[Block]) -> None:
        """Follow the blocks of a page, in order."""
        for block in blocks:
            only = block.directives.get("only", self.database)
            if "not run" not in block.directives and only == self.database:
                self.do(block)

    def do(self, block: Block) -> None:
        """Write a file, change it, run commands, or compare their output."""
        if block.language in {"sh", "console"}:
            self.run(block)
        elif block.language == "diff":
            self.change(block)
        elif block.title:
            file = self.cwd / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "text":
            compare(block, self.said)
        else:
            raise AssertionError(f"{block.where}: nothing says what to do with this block")

    def run(self, block: Block) -> None:
        """Run commands in a shell; the next ones continue in its directory."""
        if "server" in block.directives:
            self.start(block)
            return
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as where:
            script = f"trap 'pwd > {where.name}' EXIT\n{block.text}"
            done = run("bash", "-euc", script, cwd=self.cwd, env=self.env, timeout=400)
            self.cwd = Path(where.read().strip())
        self.said = COLORS.sub("", done.stdout)
        self.commands += len(commands_of(block))
        as_told = (done.returncode != 0) == ("fails" in block.directives)
        assert as_told, f"{block.where}: exit code {done.returncode}\n{block.text}\n{self.said}"

    def start(self, block: Block) -> None:
        """Start a server, which runs until the end of the page."""
        [command] = commands_of(block)
        log = Path(self._servers.enter_context(tempfile.TemporaryDirectory())) / "log"
        if block.directives["server"] == "http":
            port = free_port()
            words = [*command.split(), "--port", str(port)]
            with serving(*words, cwd=self.cwd, port=port, log=log, env={**os.environ, **self.env}):
                pass  # it has answered; the page tells the reader to stop it
        else:
            process = start(*command.split(), cwd=self.cwd, env=self.env)
            self._servers.callback(stop, process)
            assert process.stdout is not None
            for line in process.stdout:
                if block.directives["server"] in line:
                    break
            assert process.poll() is None, f"{block.where}: the server has ended"
        self.commands += 1

    def change(self, block: Block) -> None:
        """Apply a diff without line numbers: the file must contain its old lines exactly once."""
        assert block.title, f"{block.where}: which file?"
        lines = block.text.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
        new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
        file = self.cwd / block.title
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{block.where}: {file} has not this, once:\n{old}\n{text}"
        file.write_text(text.replace(old, new), encoding="utf-8")


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a server as Ctrl-C does, and wait until it has ended."""
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)


def commands_of(block: Block) -> list[str]:
    """Return the commands of a block, without comments."""
    lines = (re.sub(r"(^| +)# .*", "", line) for line in block.text.splitlines())
    return [line for line in lines if line]


def compare(block: Block, said: str) -> None:
    """Check that the lines of a block were printed, in order; ... stands for anything."""
    position = 0
    for line in block.text.splitlines():
        wanted = [re.sub(r"(\\ )+", " +", re.escape(part.strip())) for part in line.split("...")]
        pattern = re.compile(r"[^\n]*?".join(wanted))
        if not any(wanted):
            continue
        found = pattern.search(said, position)
        assert found, f"{block.where}: {line!r} was not printed:\n{said}"
        position = found.end()


def pages() -> Iterator[str]:
    """Yield the names of all pages: those in the repository's root, and the documentation."""
    yield from ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        yield page.relative_to(ROOT).as_posix()
