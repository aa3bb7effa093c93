"""Pictures of the same configurations as the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from grpo_lab.reporter import drawing
from grpo_lab.reporter.colours import SERIES, SOFT
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.curves import HELD_OUT, PROBLEMS, REWARD, Curve, shown, smooth
from grpo_lab.reporter.drawing import Picture
from grpo_lab.store import measures, stats
from grpo_lab.store.measures import PHASES

MARKERS = "osD^vP*X"
MOST = 24
"""Configurations in a picture; beyond, the tables say more."""


@drawing.styled
def step_times(configurations: Sequence[Configuration]) -> Picture | None:
    """The phases of a step as a bar for each configuration, which add up to its step."""
    timed = [entry for entry in configurations if any(f"{phase}_s" in entry.estimates for phase in PHASES)][:MOST]
    if not timed:
        return None
    figure, axes = drawing.figure(1.0 + 0.52 * len(timed))
    for place, entry in enumerate(timed):
        start = 0.0
        for colour, phase in zip(SERIES, PHASES, strict=False):
            width = entry.estimates[f"{phase}_s"].value if f"{phase}_s" in entry.estimates else 0.0
            axes.barh(place, width, left=start, height=0.42, color=colour, label=phase if place == 0 else None)
            start += width
        axes.text(0, place - 0.3, drawing.label(entry, timed), ha="left", va="bottom", fontsize=9.5)
        whole = entry.estimates.get("step_time_s")
        text = f"{whole.text()[0] if whole else f'{start:.3g}'} s"
        beside: dict[str, Any] = {
            "xytext": (4, 0),
            "textcoords": "offset points",
            "va": "center",
            "fontsize": 9.5,
            "color": SOFT,
        }
        axes.annotate(text, (start, place), **beside)
    axes.set(xlabel="seconds", ylim=(len(timed) - 0.6, -0.95))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    drawing.legend(figure, axes)
    caption = "Median of each phase as rank 0 sees it, over several seeds their mean; the number is the whole step."
    return drawing.picture(f"Where a step's time goes{drawing.of(timed)}", caption, figure)


@drawing.styled
def curve(column: str, curves: Sequence[Curve]) -> Picture | None:
    """A column over the steps: each step faint, the mean of a window strong. None without a curve, and where all is 0,
    as rewards are in a timing with random weights."""
    drawn = curves[: len(SERIES)]
    if not drawn or not any(line.low.any() or line.high.any() for line in drawn):
        return None
    about = shown(column)
    figure, axes = drawing.figure(2.9)
    for colour, line in zip(SERIES, drawn, strict=False):
        label = drawing.label(line, drawn) + (f" ({line.runs} runs)" if line.runs > 1 else "")
        axes.plot(line.step, line.mean, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(line.step, smooth(line.mean), color=colour, linewidth=1.8, label=label)
        if line.runs > 1:
            axes.fill_between(line.step, smooth(line.low), smooth(line.high), color=colour, alpha=0.16, linewidth=0)
    _over_steps(axes, about.label)
    drawing.legend(figure, axes)
    caption = f"{about.meaning} {_HOW_DRAWN if any(line.runs > 1 for line in drawn) else ''}".strip()
    return drawing.picture(
        f"{about.title} over the steps{drawing.of(drawn)}", caption + _left_out(drawn, curves), figure
    )


_HOW_DRAWN = "Line: mean over the runs; band: from the lowest to the highest of them."


def _over_steps(axes: Axes, label: str) -> None:
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", linewidth=0.7)


def _left_out(drawn: Sequence[object], several: Sequence[object]) -> str:
    return f" The first {len(drawn)} of {len(several)} configurations." if len(several) > len(drawn) else ""


@drawing.styled
def held_out(configurations: Sequence[Configuration], curves: Mapping[str, Sequence[Curve]]) -> Picture | None:
    """Held-out pass@1 before, during and after training, with its interval; None where it was not measured after."""
    measured_after = [entry for entry in configurations if "accuracy_after" in entry.estimates]
    drawn = measured_after[: len(SERIES)]
    if not drawn:
        return None
    figure, axes = drawing.figure(2.9)
    for colour, entry in zip(SERIES, drawn, strict=False):
        steps, values, low, high = (np.array(part) for part in zip(*_held_out(entry, curves), strict=True))
        count = len(entry.folders)
        label = drawing.label(entry, drawn) + (f" ({count} runs)" if count > 1 else "")
        axes.plot(
            steps, values, "o-" if len(steps) > 2 else "o:", color=colour, linewidth=1.6, markersize=4, label=label
        )
        if len(steps) > 2:
            axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.errorbar(steps, values, yerr=[values - low, high - values], fmt="none", ecolor=colour, capsize=3)
    _over_steps(axes, "held-out pass@1")
    axes.set_ylim(0, 1)
    drawing.legend(figure, axes)
    caption = (
        "Share of held-out problems answered right, with its 95% interval; between the ends, of several runs, at least"
        " from the lowest to the highest of them."
    )
    caption += _left_out(drawn, measured_after)
    return drawing.picture(f"Held-out pass@1 over the steps{drawing.of(drawn)}", caption, figure)


def _held_out(entry: Configuration, curves: Mapping[str, Sequence[Curve]]) -> list[tuple[float, float, float, float]]:
    """Step, share and both ends of its interval."""

    def of(column: str) -> Curve | None:
        fitting = (line for line in curves.get(column, ()) if (line.work, line.way) == (entry.work, entry.way))
        return next(fitting, None)

    points, (between, problems) = [], (of(HELD_OUT), of(PROBLEMS))
    if between and problems:
        counts = problems.mean * problems.runs
        for step, share, n, lowest, highest in zip(
            between.step, between.mean, counts, between.low, between.high, strict=True
        ):
            low, high = stats.wilson(float(share), int(n))
            points.append((float(step), float(share), min(low, float(lowest)), max(high, float(highest))))
    rewards = of(REWARD)
    last = float(rewards.step[-1]) if rewards else max([1.0, *(step for step, *_ in points)])
    for name, step in (("accuracy_before", 0.0), ("accuracy_after", last)):
        if estimate := entry.estimates.get(name):
            low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
            points.append((step, estimate.value, min(low, estimate.value), max(high, estimate.value)))
    return sorted(points)


@drawing.styled
def speed_and_accuracy(configurations: Sequence[Configuration]) -> Picture | None:
    """Accuracy after training over tokens a second and GPU; None with fewer than two configurations that have both."""
    speed = measures.named("train", "tokens_per_s_per_gpu")
    both = [entry for entry in configurations if {speed.name, "accuracy_after"} <= set(entry.estimates)][:MOST]
    if len(both) < 2:
        return None
    figure, axes = drawing.figure(3.5)
    for place, entry in enumerate(both):
        x, y = entry.estimates[speed.name], entry.estimates["accuracy_after"]
        look: dict[str, Any] = {
            "color": SERIES[place % len(SERIES)],
            "marker": MARKERS[(place + place // len(SERIES)) % len(MARKERS)],
        }
        axes.errorbar(
            x.value,
            y.value,
            xerr=drawing.bars(x),
            yerr=drawing.bars(y),
            linestyle="none",
            label=drawing.label(entry, both),
            elinewidth=1,
            **look,
        )
    axes.set(xlabel=speed.heading, ylabel="held-out pass@1 after")
    axes.grid(linewidth=0.7)
    drawing.legend(figure, axes)
    caption = "Bars: 95% intervals, of fewer than 6 steps their range. Up and to the right is better."
    return drawing.picture(f"Throughput against accuracy{drawing.of(both)}", caption, figure)
