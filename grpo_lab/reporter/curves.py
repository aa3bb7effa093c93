"""Columns of metrics.jsonl over the steps: read cheaply, thinned before anything is drawn, joined over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.folder import LeftOut, name
from grpo_lab.store.folder import Run

REWARD, ACCURACY = "reward", "rewards/accuracy/mean"
POINTS = 200
"""Of a curve, at most: more than a picture of a few hundred pixels can show."""
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
    found: dict[str, list[Curve]] = {REWARD: [], ACCURACY: []}
    damaged = []
    for configuration in configurations:
        read_whole = []
        for run in configuration.folders:
            try:
                read_whole.append(read(run))
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
