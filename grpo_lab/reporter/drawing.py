"""How pictures are drawn: as SVG whose colours are those of the page, light or dark.

Each is drawn about as wide as a phone, so that its text is as large as the page's. Matplotlib knows no CSS variables:
it is given stand-in colours, which are replaced in the SVG.
"""

from __future__ import annotations

import io
import re
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_lab.reporter.colours import INK, LIGHT, LINE, SOFT, VARIABLES
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.curves import Curve
from grpo_lab.store.estimates import Estimate

WIDTH = 4.9
"""Inches of 72 points: a phone's 353 CSS pixels."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "grpo-lab",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "hatch.color": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.edgecolor": LINE,
    "grid.color": LINE,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
styled = matplotlib.rc_context(_STYLE)


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    svg: str = field(repr=False)
    """One `<svg>` element, to stand in a page that defines the variables."""

    def standalone(self) -> str:
        """The SVG with its light colours in it, for a file of its own or a notebook."""
        return re.sub(r"var\(--([\w-]+)\)", lambda match: LIGHT[match[1]], self.svg)

    def file(self) -> str:
        """The SVG as a file of its own: with its title, on paper that dark pages do not shine through."""
        lines = textwrap.wrap(self.title, 62)
        height = 14 * len(lines) + 6
        look = f'style="font: bold 10px sans-serif" fill="{LIGHT["ink"]}"'
        above = f'<rect y="-{height}" width="100%" height="100%" fill="{LIGHT["page"]}"/>' + "".join(
            f'<text x="6" y="{14 * place - height}" {look}>{escape(line)}</text>' for place, line in enumerate(lines, 1)
        )

        def taller(head: re.Match[str]) -> str:
            box = f"0 -{height} {head[2]} {float(head[3]) + height}"
            return f'<svg width="560"{head[1]} viewBox="{box}"{head[4]}>{above}'

        head = re.compile(r'<svg(.*?) viewBox="0 0 ([\d.]+) ([\d.]+)"(.*?)>', re.DOTALL)
        return head.sub(taller, self.standalone(), count=1)

    _repr_svg_ = standalone
    """How a notebook shows it."""


def of(several: Sequence[Configuration | Curve]) -> str:
    """End of a title: the work of all, as far as it is the same."""
    first, *others = [entry.work.split() for entry in several]
    shared = " ".join(word for word in first if all(word in words for words in others))
    return f": {shared}" if shared else ""


def bars(estimate: Estimate) -> list[list[float]] | None:
    """Lengths of the error bars downwards and upwards, as matplotlib wants them."""
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def label(line: Configuration | Curve, among: Sequence[Configuration | Curve]) -> str:
    """What tells it apart from the others: its way, and of its work the words that not all have."""
    shared = set.intersection(*(set(each.work.split()) for each in among))
    own = " ".join(word for word in line.work.split() if word not in shared)
    return f"{own}, {line.way}" if own else line.way


def figure(height: float) -> tuple[Figure, Axes]:
    """`height`: inches."""
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, drawn.add_subplot()


def legend(figure: Figure, *panels: Axes) -> None:
    """Below the picture, in as many columns as fit, each label once; a single one only where steps are the x axis."""
    pairs = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in pairs}
    if len(handles) > 1 or (handles and panels[-1].get_xlabel() == "step"):
        columns = max(1, min(6, 54 // (max(map(len, handles)) + 6)))
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=columns)


def picture(title: str, caption: str, figure: Figure) -> Picture:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(title, caption, _themed(drawn.getvalue(), title, f"p{zlib.crc32((title + caption).encode()):08x}"))


def _themed(svg: str, title: str, prefix: str) -> str:
    """The element alone: sized by the page, its colours variables, its ids its own among several pictures."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    for before in (' id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{prefix}-")
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    label = f'<svg role="img" aria-label="{escape(title)}"'
    return re.sub(r'<svg([^>]*?) width="[\d.]+pt"', lambda match: label + match[1], svg, count=1)
