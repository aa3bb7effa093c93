"""Columns of metrics.jsonl over the steps: read cheaply, thinned before anything is drawn, joined over seeds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.folder import LeftOut, name
from grpo_lab.store.folder import Run

REWARD, ACCURACY, HELD_OUT, PROBLEMS = "reward", "rewards/accuracy/mean", "eval/accuracy", "eval/n"
POINTS = 200
"""Most points of a curve: more than a picture of a few hundred pixels can show."""
WINDOW = 20
"""Part of a run's steps, one over it, that a smoothed point is the mean of."""


@dataclass(frozen=True)
class Shown:
    """A column of metrics.jsonl that has a picture."""

    title: str
    label: str
    """Label of the y axis."""
    meaning: str = ""


SHOWN = {
    REWARD: Shown("Reward", "reward", "Weighted sum of the components, mean over the completions of a step."),
    "completions/mean_length": Shown("Completion length", "tokens", "Mean over the completions of a step."),
    "completions/clipped_ratio": Shown("Cut off", "share", "Completions that reached the length limit."),
    "frac_reward_zero_std": Shown(
        "Groups without a difference", "share", "All completions of the prompt earned the same: nothing to learn from."
    ),
    "entropy": Shown("Entropy", "nats a token", "Of the policy, on its own completions."),
    "kl": Shown("KL from the reference", "nats a token", "Estimated on the completions; only where beta is above 0."),
    "grad_norm": Shown("Gradient norm", "norm", "Before clipping."),
    "clip_ratio/region_mean": Shown("Clipped", "share", "Tokens whose ratio the loss clipped, at either end."),
    "sampling/importance_sampling_ratio/mean": Shown(
        "Importance ratio", "ratio", "The trainer's probability over vLLM's, as the loss uses it; 1: the same."
    ),
    "sampling/sampling_logp_difference/mean": Shown(
        "Log-probability difference", "nats a token", "Between vLLM and the trainer, absolute."
    ),
}
"""Column -> its picture, in the order of the page; components of the reward come after the reward."""


def component(name: str) -> Shown:
    return Shown(f"Reward: {name}", name, "A component of the reward, before its weight.")


def shown(column: str) -> Shown:
    """Raises KeyError for a column without a picture."""
    name = component_of(column)
    return component(name) if name else SHOWN[column]


def has_picture(column: str) -> bool:
    return column in SHOWN or bool(component_of(column))


def component_of(column: str) -> str:
    """Name of the reward whose mean a column is; empty where it is another column."""
    return column[len("rewards/") : -len("/mean")] if column.startswith("rewards/") and column.endswith("/mean") else ""


Steps = dict[str, "np.ndarray"]
"""`step` and one array a column, as float64; NaN where a step has none."""


@dataclass(frozen=True)
class Curve:
    """One column of one configuration: at each step the mean over its runs, and the lowest and highest of them."""

    way: str
    work: str
    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


class DamagedMetrics(ValueError):
    """metrics.jsonl cannot be read as a whole."""


def columns_of(runs: Iterable[Run]) -> list[str]:
    """What of the first steps of runs has a picture, in the order of the page."""
    keys: set[str] = set()
    for run in runs:
        with contextlib.suppress(OSError, ValueError), run.metrics.open(encoding="utf-8") as lines:
            keys |= set(json.loads(next(lines, "{}")))
    components = sorted(key for key in keys if component_of(key))
    rest = [column for column in SHOWN if column in keys and column != REWARD]
    return [REWARD, *(components if len(components) > 1 or ACCURACY in components else []), *rest]


def read(run: Run, columns: Sequence[str] = (REWARD, ACCURACY)) -> Steps | None:
    """None where the run left no metrics. Arrow parses these columns only, about ten times as fast as the standard
    library reads whole lines. Raises DamagedMetrics for a file that is torn or holds anything but rows of steps."""
    if not run.metrics.is_file() or not run.metrics.stat().st_size:
        return None
    schema = pa.schema([(key, pa.float64()) for key in ("step", *columns)])
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = arrow_json.read_json(run.metrics, parse_options=options)
    except pa.ArrowInvalid as error:
        raise DamagedMetrics(f"metrics.jsonl is damaged ({error})") from None
    arrays = {key: table[key].to_numpy() for key in ("step", *columns)}
    if np.isnan(arrays["step"]).any() or (np.diff(arrays["step"]) <= 0).any():
        raise DamagedMetrics("metrics.jsonl is damaged (its steps are not one after the other)")
    return arrays


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that at most POINTS remain; steps without a value are left out."""
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    if len(steps) <= POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), POINTS)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def curves(
    configurations: Sequence[Configuration], folders: Sequence[Path] = ()
) -> tuple[dict[str, list[Curve]], list[LeftOut]]:
    """Column -> a curve for each configuration that has it; and the runs whose metrics could not be used."""
    columns = columns_of(run for configuration in configurations for run in configuration.folders)
    found: dict[str, list[Curve]] = {column: [] for column in (*columns, HELD_OUT, PROBLEMS)}
    damaged = []
    for configuration in configurations:
        read_whole = []
        for run in configuration.folders:
            try:
                read_whole.append(read(run, list(found)))
            except DamagedMetrics as error:
                damaged.append(LeftOut(name(run.folder, folders), f"{error}: its curves are left out"))
        runs = [steps for steps in read_whole if steps is not None]
        for column, drawn in found.items():
            if curve := _joined(configuration, [thin(steps["step"], steps[column]) for steps in runs]):
                drawn.append(curve)
    return found, damaged


def _joined(configuration: Configuration, several: Sequence[tuple[np.ndarray, np.ndarray]]) -> Curve | None:
    """Over the steps that all runs have. Runs of unlike length are put on the steps of the shortest."""
    several = [(steps, values) for steps, values in several if len(steps)]
    if not several:
        return None
    grid = min((steps for steps, _ in several), key=lambda steps: float(steps[-1]))
    values = np.stack([np.interp(grid, steps, values) for steps, values in several])
    return Curve(
        configuration.way, configuration.work, grid, values.mean(0), values.min(0), values.max(0), len(several)
    )


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of a window that ends at each point, and is shorter where it begins."""
    window = max(1, len(values) // WINDOW)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))
