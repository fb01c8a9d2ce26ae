"""Bar charts as SVG, in colours that can be seen on light and on dark."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

GREY, BLUE, ORANGE = "#808080", "#4078c0", "#d07020"
WIDTH, LEFT, RIGHT, ROW, TOP = 720, 240, 70, 26, 44


class Bar(NamedTuple):
    """A bar, and the value up to which it is as good as was wanted."""

    label: str
    value: float
    goal: float


def bar_chart(title: str, bars: Sequence[Bar], *, more_is_better: bool = False) -> str:
    """Draw bars with a mark at the goal of each; those that miss it are orange."""
    longest = max(max(bar.value, bar.goal) for bar in bars)
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + ROW * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="13" fill="{GREY}">',
        f"<title>{escape(title)}</title>",
        f'<text x="8" y="22" font-size="15">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        y = TOP + ROW * number
        is_good = bar.value >= bar.goal if more_is_better else bar.value <= bar.goal
        end, goal = LEFT + scale * bar.value, LEFT + scale * bar.goal
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{scale * bar.value:.1f}" height="18" '
            f'fill="{BLUE if is_good else ORANGE}"/>',
            f'<text x="{end + 6:.1f}" y="{y + 14}">{bar.value:.2f}</text>',
            f'<line x1="{goal:.1f}" y1="{y - 3}" x2="{goal:.1f}" y2="{y + 21}" '
            f'stroke="{GREY}" stroke-width="2" stroke-dasharray="3 2"/>',
        ]
    return "\n".join([*lines, "</svg>", ""])
