"""The picture of one run: its rewards over the steps, and below them its held-out accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpo_lab.machine.disk import DiskFull, writing
from grpo_lab.store import stats
from grpo_lab.store.estimates import estimate
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, LINE, PAPER = "#1b2430", "#566170", "#d5dbe3", "#fbfcfd"
"""Colours of text, axes, grid and paper. The picture brings its own paper, so that it reads on light and dark pages."""
TOTAL, HELD_OUT = "#1b2430", "#2f6fb0"
COMPONENTS = ("#d17a22", "#2e8b6f", "#b5527b", "#7a68b8", "#8a8d2f", "#4c9fc4", "#8d6f5a")
_STYLE: dict[Any, Any] = {
    **{"text.color": INK, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "axes.edgecolor": LINE},
    **{"figure.facecolor": PAPER, "axes.facecolor": PAPER, "grid.color": LINE, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "text.parse_math": False},
}


def draw(run: Run, result: Result) -> None:
    """Write reward_curve.png. Raises DiskFull, with no torn file left.

    Matplotlib is imported here: it takes longer than the rest of the conductor.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in run.rows() if row.get("reward") is not None]
    if not rows:
        return
    points = held_out(run.rows(), result, rows[-1]["step"])
    with rc_context(_STYLE):
        figure = Figure(figsize=(7, 5.2 if points else 3.4), dpi=130, layout="constrained")
        panels = figure.subplots(2, sharex=True, height_ratios=(3, 2)) if points else [figure.add_subplot()]
        _rewards(panels[0], rows)
        if points:
            _accuracies(panels[1], points)
        for axes in panels:
            axes.grid(axis="y", linewidth=0.7)
            axes.set_axisbelow(True)
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(title(run, result, rows), fontsize=11.5, wrap=True)
        try:
            with writing(run.reward_curve):
                figure.savefig(run.reward_curve)
        except DiskFull:
            run.reward_curve.unlink(missing_ok=True)
            raise


def title(run: Run, result: Result, rows: Sequence[Row]) -> str:
    """What came of it: `tiny on arithmetic: pass@1 0.42 -> 0.71, +0.29 (0.24 to 0.34)`."""
    data = str((run.read_config().get("data") or {}).get("_target_", "")).rpartition(".")[2]
    of = " on ".join(part for part in (result.model or run.folder.name, data) if part)
    before, after, gain = (estimate(result.metrics.get(f"accuracy_{name}")) for name in ("before", "after", "gain"))
    if before and after:
        ends = f"pass@1 {before.value:.2f} -> {after.value:.2f}"
        if gain is None or gain.low is None or gain.high is None:
            return f"{of}: {ends}"
        return f"{of}: {ends}, {gain.value:+.2f} ({gain.low:.2f} to {gain.high:.2f})"
    tenth = max(1, len(rows) // 10)
    first, last = (smooth([row["reward"] for row in part], tenth)[-1] for part in (rows[:tenth], rows[-tenth:]))
    return f"{of}: reward {first:.2f} -> {last:.2f}"


def _rewards(axes: Axes, rows: Sequence[Row]) -> None:
    """The weighted sum, and its components where there are several: each step faint, the mean of a window strong."""
    window = max(1, len(rows) // 20)
    components = [key for key in rows[-1] if key.startswith("rewards/") and key.endswith("/mean")]
    columns = [("reward", "reward", TOTAL)]
    if len(components) > 1:
        named = zip(components, COMPONENTS, strict=False)
        columns += [(key, key.removeprefix("rewards/").removesuffix("/mean"), colour) for key, colour in named]
    for key, label, colour in columns:
        there = [row for row in rows if row.get(key) is not None]
        steps, values = [row["step"] for row in there], [row[key] for row in there]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(steps, smooth(values, window), color=colour, linewidth=2, label=label)
    axes.set_ylabel(f"reward, mean of {window} steps" if window > 1 else "reward")
    axes.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)


Point = tuple[int, float, float, float, int]
"""Step, share right, both ends of its 95% interval, problems."""


def held_out(rows: Sequence[Row], result: Result, last: int) -> list[Point]:
    """Held-out accuracy before, during and after training, as far as it was measured."""
    points = [
        (row["step"], row["eval/accuracy"], *stats.wilson(row["eval/accuracy"], row["eval/n"]), row["eval/n"])
        for row in rows
        if row.get("eval/accuracy") is not None
    ]
    for moment, step in (("before", 0), ("after", last)):
        share = estimate(result.metrics.get(f"accuracy_{moment}"))
        if share and share.low is not None and share.high is not None:
            points.append((step, share.value, share.low, share.high, share.n or 0))
    return sorted(points)


def _accuracies(axes: Axes, points: Sequence[Point]) -> None:
    steps, values, low, high, counts = zip(*points, strict=True)
    between = len(points) > 2  # two ends say nothing about the way from one to the other
    axes.plot(steps, values, "o-" if between else "o:", color=HELD_OUT, linewidth=1.6, markersize=5)
    if between:
        axes.fill_between(steps, low, high, color=HELD_OUT, alpha=0.12, linewidth=0)
    ends = [  # an older result may exclude its value by rounding
        [max(0.0, value - end) for value, end in zip(values, low, strict=True)],
        [max(0.0, end - value) for value, end in zip(values, high, strict=True)],
    ]
    axes.errorbar(steps, values, yerr=ends, fmt="none", ecolor=HELD_OUT, capsize=3, elinewidth=1)
    axes.set_ylim(0, 1)
    problems = " to ".join(f"{count}" for count in sorted({min(counts), max(counts)}))
    axes.set_ylabel(f"held-out pass@1\n({problems} problems)")


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each point."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - window) : end])]
