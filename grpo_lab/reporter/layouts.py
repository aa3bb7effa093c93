"""TP against DP: the same GPUs split in different ways, a line for each model, a panel for each load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_lab.planner import modes
from grpo_lab.reporter import drawing
from grpo_lab.reporter.colours import SERIES, SOFT
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.drawing import Picture
from grpo_lab.store import estimates, measures
from grpo_lab.store.estimates import Estimate
from grpo_lab.store.measures import Measure

SPEED = {"bench": "generated_tokens_per_s_per_gpu", "train": "tokens_per_s_per_gpu"}
"""Kind of run -> the measure that layouts are compared by."""
APART = 0.12
"""Between the lines of two models, so that their intervals do not cover each other."""
Cells = Mapping[tuple[str, str], Mapping[int, Configuration]]
"""Load and model -> tp -> configuration; all on one number of GPUs."""


@drawing.styled
def crossings(configurations: Sequence[Configuration], kind: str) -> list[Picture]:
    """A picture for each mode and number of GPUs that was split in at least two ways."""
    together: dict[tuple[str, int], list[Configuration]] = {}
    for entry in configurations:
        mode = str(entry.asked.get("vllm_mode"))
        if modes.mode(mode).engines:
            together.setdefault((mode, _layout(entry)[0] * _layout(entry)[1]), []).append(entry)
    measure = measures.named(kind, SPEED[kind])
    return [
        _picture(mode, gpus, cells, measure)
        for (mode, gpus), several in together.items()
        if (cells := _cells(several)) and any(measure.name in entry.estimates for entry in several)
    ]


def _layout(entry: Configuration) -> tuple[int, int]:
    return int(entry.asked.get("tp", 1)), int(entry.asked.get("dp", 1))


def _cells(several: Sequence[Configuration]) -> Cells:
    """Groups of the loads and models that have two layouts, and differ in nothing else."""
    cells: dict[tuple[str, str], list[Configuration]] = {}
    for entry in several:
        cells.setdefault((entry.task, str(entry.asked.get("model"))), []).append(entry)
    by_tp = {of: {_layout(entry)[0]: entry for entry in entries} for of, entries in cells.items()}
    return {of: layouts for of, layouts in by_tp.items() if len(layouts) == len(cells[of]) >= 2}


def _picture(mode: str, gpus: int, cells: Cells, measure: Measure) -> Picture:
    tasks, models = (list(dict.fromkeys(of[place] for of in cells)) for place in (0, 1))
    tps = sorted({tp for layouts in cells.values() for tp in layouts})
    figure = Figure(figsize=(drawing.WIDTH, 0.9 + 2.1 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), sharex=True, squeeze=False)[:, 0]
    for axes, task in zip(panels, tasks, strict=True):
        for place, model in enumerate(models):
            if layouts := cells.get((task, model)):
                _line(axes, layouts, tps, measure, _Look(model, place, len(models)))
        axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
        axes.set_title(task, loc="left", fontsize=10)
        axes.grid(axis="y", linewidth=0.7)
        axes.margins(y=0.12)
    panels[-1].set_xticks(range(len(tps)), [f"tp={tp} dp={gpus // tp}" for tp in tps])
    panels[-1].set_xlim(-0.5, len(tps) - 0.5)
    figure.supylabel(f"tokens/s, relative to tp={tps[0]}", fontsize=10, color=SOFT)
    drawing.legend(figure, *panels)
    caption = (
        f"{measure.label[0].upper()}{measure.label[1:]}, each model over its own tp={tps[0]}: above 1 is faster."
        " Bars: as wide as both intervals' ends allow (of fewer than 6 rounds or steps: their ranges)."
        " What did not run stands below."
    )
    named = ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")
    title = "; ".join(
        [f"TP against DP on {gpus} GPUs, {mode}: {named}", *filter(None, [", ".join(filter(None, tasks))])]
    )
    return drawing.picture(title, caption, figure)


@dataclass(frozen=True)
class _Look:
    """Look of one model's line among others."""

    model: str
    place: int
    of: int

    @property
    def colour(self) -> str:
        return SERIES[self.place % len(SERIES)]

    @property
    def shift(self) -> float:
        return APART * (self.place - (self.of - 1) / 2)


def _line(axes: Axes, layouts: Mapping[int, Configuration], tps: Sequence[int], measure: Measure, look: _Look) -> None:
    base = layouts[tps[0]].estimates.get(measure.name) if tps[0] in layouts else None
    ratios = {tp: _over(entry.estimates.get(measure.name), base, is_base=tp == tps[0]) for tp, entry in layouts.items()}
    there = [(tps.index(tp) + look.shift, ratio) for tp, ratio in sorted(ratios.items()) if ratio]
    if there:
        steps, values = [x for x, _ in there], [ratio.value for _, ratio in there]
        axes.plot(steps, values, "o-", color=look.colour, markersize=5, linewidth=1.6, label=look.model)
    for x, ratio in there:
        if (ends := drawing.bars(ratio)) is not None:
            axes.errorbar(
                [x], [ratio.value], yerr=np.array(ends), fmt="none", ecolor=look.colour, capsize=3, elinewidth=1
            )
    for tp, entry in layouts.items():
        if not ratios[tp]:
            without_base = "" if base or tp == tps[0] else f"tp={tps[0]} is missing"
            text = f"{look.model}: {entry.failure or without_base or 'not measured'}"
            spot = (tps.index(tp) / len(tps) + 0.5 / len(tps), 0.03 + 0.1 * look.place)
            axes.text(*spot, text, transform=axes.transAxes, ha="center", fontsize=8.5, color=look.colour)


def _over(speed: Estimate | None, base: Estimate | None, *, is_base: bool) -> Estimate | None:
    if speed is None or base is None:
        return None
    return Estimate(1.0) if is_base else estimates.ratio(speed, base)
