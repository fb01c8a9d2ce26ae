"""A terminal of 80 columns, and a person who answers Copier's questions there."""

import os
import re
import sys
from pathlib import Path

import pexpect
import yaml

from tests.rendering import QUESTIONS, ROOT

COPIER_YML = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
ASKED = [name for name in QUESTIONS if COPIER_YML[name].get("ask", True)]
WIDTH = 80

ENTER, UP, DOWN, EMPTIED = "\r", "\x1b[A", "\x1b[B", "\x15"


class Interview:
    """`copier copy` in a terminal, and what the terminal has shown."""

    def __init__(self, template: Path, destination: str, *options: str, cwd: Path) -> None:
        self.project = cwd / destination
        self.shown = ""
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "copier", "copy", *options, str(template), destination],
            cwd=str(cwd),
            # Without NO_CPR, it would ask the terminal for the cursor position, and get no answer.
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(24, WIDTH),
            encoding="utf-8",
            timeout=60,
        )

    def wait_for(self, text: str) -> None:
        """Wait until the text is shown."""
        self.child.expect_exact(text)
        self.shown += f"{self.child.before}{text}"

    def answer(self, name: str, keys: str = ENTER) -> None:
        """Wait until this question is asked, then type the answer."""
        self.wait_for(COPIER_YML[name]["help"])
        self.child.send(keys)

    def answer_rest(self, names: list[str]) -> None:
        """Take the defaults of these questions."""
        for name in names:
            self.answer(name)

    def finish(self) -> str:
        """Wait for the end, and return the whole output, without colours."""
        self.child.expect(pexpect.EOF)
        self.shown += str(self.child.before)
        self.child.close()
        assert self.child.exitstatus == 0, self.shown
        return without_colours(self.shown)

    def answers(self) -> dict[str, object]:
        """Return the stored answers."""
        kept = yaml.safe_load((self.project / ".copier-answers.yml").read_text(encoding="utf-8"))
        return {name: kept[name] for name in QUESTIONS}


def without_colours(shown: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown).replace("\r", "")
