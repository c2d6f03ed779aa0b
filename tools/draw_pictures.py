"""Draws docs/pictures/*.svg from the .toml files beside them.

    python tools/draw_pictures.py

A picture is a sequence: columns for threads, and steps from top to bottom, each a box in a column
(`at`) or an arrow between two (`from`, `to`). It is drawn here and not by Graphviz, so that a test
can say that a committed picture is what its source says. Both faces, light and dark, are in one
file: the page that shows it chooses.
"""

from __future__ import annotations

import textwrap
import tomllib
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"

COLUMN, MARGIN, PAD, LINE, GAP = 158, 12, 8, 17, 14
#: Pixels that a letter takes: an estimate from above, since fonts differ.
LETTER = 6.9

STYLE = """
.paper { fill: #fff } text { fill: #1f2328; font: 13px system-ui, sans-serif; text-anchor: middle }
.column { font-weight: 600 } .head { fill: #dbe7f6 } .box { fill: #f2f4f7; stroke: #aab4c0 }
.life { stroke: #c3cad3; stroke-dasharray: 3 4 } .arrow { stroke: #1f5fb0; stroke-width: 1.6 }
.tip { fill: #1f5fb0 } .label { stroke: #fff; stroke-width: 5; paint-order: stroke }
@media (prefers-color-scheme: dark) {
  .paper { fill: #16191d } text { fill: #e3e7ec } .head { fill: #24364d }
  .box { fill: #22272e; stroke: #515b67 } .life { stroke: #434c57 } .arrow { stroke: #7fb4f5 }
  .tip { fill: #7fb4f5 } .label { stroke: #16191d }
}
"""


def lines_of(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int(width / LETTER), break_long_words=False)


def text_at(x: float, y: float, lines: list[str], kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    parts = (
        f'<tspan x="{x:g}" y="{y + LINE * number:g}">{escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )
    return f"<text{mark}>{''.join(parts)}</text>"


def middle_of(column: int) -> float:
    return MARGIN + COLUMN * (column + 0.5)


def box(x: float, y: float, lines: list[str], kind: str, words: str = "") -> tuple[str, float]:
    """A box with lines in it, and the height that it takes."""
    height = LINE * len(lines) + 2 * PAD
    left, width = x - COLUMN / 2 + 6, COLUMN - 12
    drawn = (
        f'<rect class="{kind}" x="{left:g}" y="{y:g}" width="{width}" height="{height}" rx="5"/>'
    )
    return drawn + text_at(x, y + PAD + 12, lines, words), height


def arrow(start: float, end: float, y: float, text: str) -> tuple[str, float]:
    """An arrow with its words above it, and the height that both take."""
    width = max(abs(end - start) - 24, COLUMN - 12)
    lines = lines_of(text, width)
    low = y + LINE * len(lines) + 4
    back = -9 if end > start else 9
    return (
        f'<line class="arrow" x1="{start:g}" y1="{low:g}" x2="{end + back / 2:g}" y2="{low:g}"/>'
        f'<path class="tip" d="M{end:g} {low:g} l{back} -5 v10 z"/>'
        + text_at((start + end) / 2, y + 12, lines, "label"),
        LINE * len(lines) + 8,
    )


def draw(source: dict[str, Any]) -> str:
    columns = source["columns"]
    heads = [lines_of(name, COLUMN - 28) for name in columns]
    tallest = max(map(len, heads))
    heads = [[*lines, *[""] * (tallest - len(lines))] for lines in heads]
    parts, y = [], float(MARGIN)
    for number, lines in enumerate(heads):
        drawn, height = box(middle_of(number), y, lines, "head", "column")
        parts.append(drawn)
    top = y = y + height
    y += GAP
    for step in source["step"]:
        if "at" in step:
            lines = lines_of(step["text"], COLUMN - 28)
            drawn, height = box(middle_of(step["at"]), y, lines, "box")
        else:
            drawn, height = arrow(middle_of(step["from"]), middle_of(step["to"]), y, step["text"])
        parts.append(drawn)
        y += height + GAP
    lives = [
        f'<line class="life" x1="{middle_of(n):g}" y1="{top:g}" x2="{middle_of(n):g}" y2="{y:g}"/>'
        for n in range(len(columns))
    ]
    width, height = COLUMN * len(columns) + 2 * MARGIN, y + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}"'
            f' width="{width}" height="{height:g}" role="img">',
            f"<title>{escape(source['title'])}</title>",
            f"<style>{STYLE}</style>",
            '<rect class="paper" width="100%" height="100%" rx="8"/>',
            *lives,
            *parts,
            "</svg>\n",
        ]
    )


def pictures() -> dict[Path, str]:
    """Where each picture lies, and what it is."""
    return {
        path.with_suffix(".svg"): draw(tomllib.loads(path.read_text()))
        for path in sorted(FOLDER.glob("*.toml"))
    }


if __name__ == "__main__":
    for place, picture in pictures().items():
        place.write_text(picture)
        print(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)
