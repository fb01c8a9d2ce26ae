"""Draw the pictures of docs/isolation.md.

    uv run python scripts/diagrams.py

It reads the graph of the fixtures from their definitions. The pictures are dark cards, which are
readable on light and dark pages.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
TESTS = ROOT / "template/tests"
BACKGROUND, TEXT, FAINT, LINE = "#1b1f2a", "#e8eaf0", "#9aa3b5", "#6b7489"
SESSION, FUNCTION, GREEN, RED, AMBER = "#2f5d8c", "#3d6b4f", "#5fb37c", "#d9706a", "#d8a657"
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"


@dataclass
class Drawing:
    """An SVG picture."""

    width: int
    height: int
    title: str
    shapes: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Draw a box."""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{color}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        color: str = TEXT,
        anchor: str = "middle",
        size: int = 13,
    ) -> None:
        """Draw text."""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" fill="{color}" font-size="{size}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def line(
        self, path: str, color: str = LINE, *, arrow: bool = False, dashed: bool = False
    ) -> None:
        """Draw a line along an SVG path."""
        end = ' marker-end="url(#arrow)"' if arrow else ""
        dashes = ' stroke-dasharray="4 4"' if dashed else ""
        self.shapes.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"{end}{dashes}/>'
        )

    def svg(self) -> str:
        """Return the picture."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" font-family="{FONT}">',
                f"<title>{escape(self.title)}</title>",
                '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{LINE}"/>'
                "</marker></defs>",
                f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{BACKGROUND}"/>',
                *self.shapes,
                "</svg>",
                "",
            ]
        )


# ---- The fixtures ----

FILES = ("conftest.py", "harness/plugin.py", "fixtures.py.jinja")
# Pytest's own, or for tests without a database.
LEFT_OUT = {"request", "pytestconfig", "cleared_up", "anyio_backend"}


@dataclass(frozen=True)
class Fixture:
    """A fixture: whether all tests share it, and which fixtures it needs."""

    is_shared: bool
    needs: tuple[str, ...]


def read_fixtures() -> dict[str, Fixture]:
    """Read the fixtures, and those that they need, from their definitions."""
    found = {}
    for name in FILES:
        source = (TESTS / name).read_text(encoding="utf-8")
        lines = [line for line in source.splitlines() if not line.startswith("{%")]
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                decorators = " ".join(map(ast.unparse, node.decorator_list))
                needs = tuple(a.arg for a in node.args.args if a.arg not in LEFT_OUT)
                if "pytest.fixture" in decorators and node.name not in LEFT_OUT:
                    found[node.name] = Fixture("session" in decorators, needs)
    return found


def level(name: str, fixtures: dict[str, Fixture]) -> int:
    """Return the length of the longest chain of fixtures that this one needs."""
    return max((level(each, fixtures) + 1 for each in fixtures[name].needs), default=0)


def draw_fixtures() -> str:
    """Draw which fixture needs which."""
    fixtures = read_fixtures()
    levels: dict[int, list[str]] = {}
    for name in fixtures:
        levels.setdefault(level(name, fixtures), []).append(name)
    width, height, gap, row = 176, 34, 34, 78
    drawing = Drawing(760, 60 + row * len(levels), "The fixtures, and which of them need which")
    places = {}
    for number, names in levels.items():
        left = (drawing.width - len(names) * width - (len(names) - 1) * gap) / 2
        for position, name in enumerate(sorted(names)):
            places[name] = (left + position * (width + gap), 24 + number * row)
    for name, fixture in fixtures.items():
        for needed in direct(fixture.needs, fixtures):
            (x, y), (to_x, to_y) = places[needed], places[name]
            start, end = x + width / 2, to_x + width / 2
            bend = (y + height + to_y) / 2
            path = (
                f"M{start:g} {y + height:g} C{start:g} {bend:g} {end:g} {bend:g} {end:g} {to_y:g}"
            )
            drawing.line(path, arrow=True)
    for name, (x, y) in places.items():
        drawing.box(x, y, width, height, SESSION if fixtures[name].is_shared else FUNCTION)
        drawing.text(x + width / 2, y + 22, name)
    legend = drawing.height - 22
    for at, color, words in (
        (200, SESSION, "once per run and worker"),
        (430, FUNCTION, "once per test"),
    ):
        drawing.box(at, legend - 11, 14, 14, color)
        drawing.text(at + 22, legend, words, FAINT, "start")
    return drawing.svg()


def direct(needs: Iterable[str], fixtures: dict[str, Fixture]) -> list[str]:
    """Return the needed fixtures, without those that another needed one needs."""
    return [
        name
        for name in needs
        if not any(name in before(other, fixtures) for other in needs if other != name)
    ]


def before(name: str, fixtures: dict[str, Fixture]) -> set[str]:
    """Return all fixtures that `name` needs, directly or not."""
    needs = fixtures[name].needs
    return {*needs, *(each for need in needs for each in before(need, fixtures))}


# ---- The transactions of one test ----

LANES = ["the connection", "the test's db_session", "request 1", "its background task", "request 2"]
# For each transaction: its lane, when it begins and ends, how it ends, and what it does.
SPANS = [
    (1, 1.0, 2.6, "commit", "adds a user"),
    (2, 3.0, 4.8, "commit", "adds an item"),
    (3, 5.0, 6.8, "commit", "notes the time"),
    (4, 7.0, 8.8, "rollback", "IntegrityError"),
    (1, 9.2, 11.2, "", "checks the rows"),
]


def draw_transactions() -> str:
    """Draw what the application and the test do in the transaction of a rolled-back test."""
    drawing = Drawing(860, 330, "The transactions of a rolled-back test")
    left, unit, top, row = 190, 54, 40, 50

    def x(time: float) -> float:
        return left + unit * time

    for number, lane in enumerate(LANES):
        y = top + row * number
        drawing.text(left - 20, y + 20, lane, TEXT if number == 0 else FAINT, "end")
        if number:
            drawing.line(f"M{left} {y + 15} H{x(12):g}", "#343b4d", dashed=True)
    drawing.box(x(0.3), top, unit * 11.2, 30, "#39415a")
    drawing.text(x(0.3) + 10, top + 20, "BEGIN", TEXT, "start")
    drawing.text(x(11.5) - 10, top + 20, "ROLLBACK", RED, "end")
    for place, begin, end, how, words in SPANS:
        y = top + row * place
        drawing.line(f"M{x(begin):g} {top + 30} V{y}", dashed=True)
        drawing.box(
            x(begin), y, unit * (end - begin), 30, FUNCTION if how != "rollback" else "#6d3f45"
        )
        drawing.text((x(begin) + x(end)) / 2, y + 20, words, size=12)
        if how:
            color = GREEN if how == "commit" else AMBER
            drawing.line(f"M{x(end):g} {y} V{top + 30}", color, arrow=False)
            drawing.text(x(end) - 4, y + 44, how, color, "end", 11)
    drawing.text(
        left - 120,
        drawing.height - 18,
        "Each box is a savepoint. A commit releases it, and a rollback goes back to its beginning.",
        FAINT,
        "start",
        12,
    )
    return drawing.svg()


def pictures() -> dict[str, str]:
    """Return the pictures by name."""
    return {"fixtures.svg": draw_fixtures(), "transactions.svg": draw_transactions()}


def main() -> None:
    """Draw all pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (IMAGES / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
