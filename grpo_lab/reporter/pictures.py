"""Pictures of the same configurations as the tables, as SVG whose colours are those of the page, light or dark.

Each is drawn about as wide as a phone, so that its text is as large as the page's. Matplotlib knows no CSS variables:
it is given stand-in colours, which are replaced in the SVG.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from grpo_lab.planner import modes
from grpo_lab.reporter.colours import INK, LIGHT, LINE, SERIES, SOFT, VARIABLES
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.curves import ACCURACY, REWARD, Curve
from grpo_lab.store import measures
from grpo_lab.store.estimates import Estimate
from grpo_lab.store.measures import PHASES, Measure

MARKERS = "osD^vP*X"
WIDTH = 4.9
"""Inches of 72 points: a phone's 353 CSS pixels."""
MOST = 24
"""Configurations in a picture; beyond, the tables say more."""
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
_styled = matplotlib.rc_context(_STYLE)


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    svg: str = field(repr=False)
    """One `<svg>` element, to stand in a page that defines the variables."""

    def standalone(self) -> str:
        """The SVG with its light colours in it, for a file of its own or a notebook."""
        return re.sub(r"var\(--([\w-]+)\)", lambda match: LIGHT[match[1]], self.svg)

    _repr_svg_ = standalone
    """How a notebook shows it."""


@_styled
def heatmaps(configurations: Sequence[Configuration], kind: str) -> list[Picture]:
    """tp x dp of the first headline, for each workload and mode that has at least two layouts."""
    measure = measures.headlines(kind)[0]
    maps = []
    together: dict[tuple[str, str], list[Configuration]] = {}
    for entry in configurations:
        mode = entry.asked.get("vllm_mode")
        if mode is None or modes.mode(mode).engines:
            together.setdefault((entry.work, str(mode)), []).append(entry)
    for (work, mode), several in together.items():
        cells = {(int(entry.asked.get("tp", 1)), int(entry.asked.get("dp", 1))): entry for entry in several}
        if len(cells) == len(several) >= 2:  # not where something else is varied too: a cell is one configuration
            caption = f"{measure.heading}; {measure.better} is better. The numbers are those of the tables."
            maps.append(_picture(f"tp x dp: {work}, {mode}", caption, _heatmap(cells, measure)))
    return maps


def _heatmap(cells: Mapping[tuple[int, int], Configuration], measure: Measure) -> Figure:
    tps, dps = sorted({tp for tp, _ in cells}), sorted({dp for _, dp in cells})
    figure, axes = _figure(0.75 + 0.62 * len(tps))
    values = [entry.estimates[measure.name].value for entry in cells.values() if measure.name in entry.estimates]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    for (tp, dp), entry in cells.items():
        x, y = dps.index(dp), tps.index(tp)
        estimate = entry.estimates.get(measure.name)
        share = (estimate.value - low) / (high - low) if estimate and high > low else 0.5
        share = 1 - share if measure.better == "lower" else share
        look: dict[str, Any] = (
            {"facecolor": SERIES[0], "alpha": 0.08 + 0.42 * share} if estimate else {"fill": False, "hatch": "////"}
        )
        axes.add_patch(Rectangle((x, y), 1, 1, edgecolor=LINE, linewidth=1, **look))
        text = estimate.text()[0] if estimate else entry.failure or "not measured"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=11 if estimate else 9)
    axes.set(xlim=(0, len(dps)), ylim=(len(tps), 0), xlabel="dp", ylabel="tp")
    axes.set_xticks([place + 0.5 for place in range(len(dps))], [str(dp) for dp in dps])
    axes.set_yticks([place + 0.5 for place in range(len(tps))], [str(tp) for tp in tps])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@_styled
def step_times(configurations: Sequence[Configuration]) -> Picture | None:
    """The phases of a step as a bar for each configuration, which add up to its step."""
    timed = [entry for entry in configurations if any(f"{phase}_s" in entry.estimates for phase in PHASES)][:MOST]
    if not timed:
        return None
    figure, axes = _figure(1.0 + 0.52 * len(timed))
    for place, entry in enumerate(timed):
        start = 0.0
        for colour, phase in zip(SERIES, PHASES, strict=False):
            width = entry.estimates[f"{phase}_s"].value if f"{phase}_s" in entry.estimates else 0.0
            axes.barh(place, width, left=start, height=0.42, color=colour, label=phase if place == 0 else None)
            start += width
        axes.text(0, place - 0.3, _label(entry, timed), ha="left", va="bottom", fontsize=9.5)
        whole = entry.estimates.get("step_time_s")
        axes.text(
            start,
            place,
            f" {whole.text()[0] if whole else f'{start:.3g}'} s",
            ha="left",
            va="center",
            fontsize=9.5,
            color=SOFT,
        )
    axes.set(xlabel="seconds", ylim=(len(timed) - 0.6, -0.95))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    _legend(figure, axes)
    caption = "Median of each phase as rank 0 sees it, over several seeds their mean; the number is the whole step."
    return _picture("Where a step's time goes", caption, figure)


@_styled
def curve(column: str, curves: Sequence[Curve], configurations: Sequence[Configuration] = ()) -> Picture | None:
    """Reward or accuracy over the steps. To the accuracy of training the held-out one before and after is added. None
    without a curve, and where all is 0 and nothing was held out, as in a timing with random weights."""
    drawn = curves[: len(SERIES)]
    evaluated = column == ACCURACY and any("accuracy_after" in one.estimates for one in configurations)
    if not drawn or (not evaluated and not any(one.low.any() or one.high.any() for one in drawn)):
        return None
    figure, axes = _figure(3.3)
    for colour, one in zip(SERIES, drawn, strict=False):
        label = _label(one, drawn) + (f" ({one.runs} runs)" if one.runs > 1 else "")
        axes.plot(one.step, one.mean, color=colour, linewidth=1.6, label=label)
        if one.runs > 1:
            axes.fill_between(one.step, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
    held_out = column == ACCURACY and _held_out(axes, drawn, configurations)
    axes.set(xlabel="step", ylabel={REWARD: "reward", ACCURACY: "share right"}[column])
    axes.grid(axis="y", linewidth=0.7)
    _legend(figure, axes)
    title = {REWARD: "Reward", ACCURACY: "Accuracy"}[column]
    caption = "Line: mean over the runs of a configuration; band: from the lowest to the highest of them."
    caption += " Dots: held-out pass@1 before and after, with its interval." if held_out else ""
    more = f" The first {len(drawn)} of {len(curves)} configurations." if len(curves) > len(drawn) else ""
    return _picture(f"{title} over the steps", caption + more, figure)


def _held_out(axes: Axes, drawn: Sequence[Curve], configurations: Sequence[Configuration]) -> bool:
    """Whether there were any."""
    by_name = {(shown.work, shown.way): shown.estimates for shown in configurations}
    ends = [
        (colour, step, estimate)
        for colour, shown in zip(SERIES, drawn, strict=False)
        for column, step in (("accuracy_before", 0.0), ("accuracy_after", float(shown.step[-1])))
        if (estimate := by_name.get((shown.work, shown.way), {}).get(column))
    ]
    for colour, step, estimate in ends:
        axes.errorbar([step], [estimate.value], yerr=_bars(estimate), fmt="o", color=colour, capsize=3, markersize=5)
    return bool(ends)


@_styled
def speed_and_accuracy(configurations: Sequence[Configuration]) -> Picture | None:
    """Accuracy after training over tokens a second and GPU; None with fewer than two configurations that have both."""
    speed = measures.named("train", "tokens_per_s_per_gpu")
    both = [entry for entry in configurations if {speed.name, "accuracy_after"} <= set(entry.estimates)][:MOST]
    if len(both) < 2:
        return None
    figure, axes = _figure(3.5)
    for place, entry in enumerate(both):
        x, y = entry.estimates[speed.name], entry.estimates["accuracy_after"]
        look: dict[str, Any] = {
            "color": SERIES[place % len(SERIES)],
            "marker": MARKERS[(place + place // len(SERIES)) % len(MARKERS)],
        }
        axes.errorbar(
            x.value,
            y.value,
            xerr=_bars(x),
            yerr=_bars(y),
            linestyle="none",
            label=_label(entry, both),
            elinewidth=1,
            **look,
        )
    axes.set(xlabel=speed.heading, ylabel="held-out pass@1 after")
    axes.grid(linewidth=0.7)
    _legend(figure, axes)
    caption = "Bars: 95% intervals, of fewer than 6 steps their range. Up and to the right is better."
    return _picture("Throughput against accuracy", caption, figure)


def _bars(estimate: Estimate) -> list[list[float]] | None:
    """Lengths of the error bars downwards and upwards, as matplotlib wants them."""
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _label(line: Configuration | Curve, among: Sequence[Configuration | Curve]) -> str:
    """What tells it apart from the others: its way, and of its work the words that not all have."""
    shared = set.intersection(*(set(each.work.split()) for each in among))
    own = " ".join(word for word in line.work.split() if word not in shared)
    return f"{own}, {line.way}" if own else line.way


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the picture, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1 or axes.get_xlabel() == "step":
        longest = max(len(label) for label in labels)
        figure.legend(handles, labels, loc="outside lower left", ncols=max(1, min(6, 54 // (longest + 6))))


def _picture(title: str, caption: str, figure: Figure) -> Picture:
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
