"""Completions for the page, where a reader browses them: whole steps, so many that a browser does not notice them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lab.reporter.folder import LeftOut, name
from grpo_lab.store import completions
from grpo_lab.store.completions import DamagedCompletions, Sample, evenly, shortened
from grpo_lab.store.folder import Row, Run

ROWS, RUNS = 2_000, 40
"""Completions in a page, and runs that they are of."""
PROMPT, COMPLETION = 1_000, 2_000
"""Characters of each text, at most."""


@dataclass(frozen=True)
class Rollouts:
    note: str
    """How many of how many, where not all are there."""
    content: Mapping[str, Any]
    """`prompts`, and of each run its `name`, `rewards` (names), and `rows` as :func:`_row` makes them."""

    def json(self) -> str:
        """Text for a `<script type="application/json">`: no text in it can end the element."""
        text = json.dumps(self.content, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read(rows: Sequence[Row], folders: Sequence[Path]) -> tuple[Rollouts | None, list[LeftOut]]:
    """Rollouts of the runs that recorded any, and the runs whose completions are damaged."""
    damaged, counted = [], []
    for run in [Run(Path(row["run"])) for row in rows]:
        try:
            if counts := completions.recorded(run):
                counted.append((run, counts))
        except DamagedCompletions as error:
            damaged.append(LeftOut(name(run.folder, folders), f"{error}: its rollouts are left out"))
    prompts: dict[str, int] = {}
    runs = [
        _of_run(run, counts, ROWS // min(RUNS, len(counted)), prompts) | {"name": name(run.folder, folders)}
        for run, counts in counted[:RUNS]
    ]
    if not runs:
        return None, damaged
    there, total = sum(len(run["rows"]) for run in runs), sum(sum(counts.values()) for _, counts in counted)
    of_runs = f" of {len(runs)} of {len(counted)} runs" if len(counted) > len(runs) else ""
    words = "whole steps from the first to the last, or every so many of a step; completions.parquet has all"
    note = f"{there:,} of {total:,} completions{of_runs}: {words}." if there < total else ""
    return Rollouts(note, {"prompts": list(prompts), "runs": runs}), damaged


def _of_run(run: Run, counts: Mapping[int, int], room: int, prompts: dict[str, int]) -> dict[str, Any]:
    steps = evenly(sorted(counts), max(1, room * len(counts) // sum(counts.values())))
    several = evenly(list(completions.samples(run, steps=frozenset(steps))), room)
    names = list(dict.fromkeys(reward for sample in several for reward in sample.rewards))
    return {"rewards": names, "rows": [_row(sample, names, prompts) for sample in several]}


def _row(sample: Sample, names: Sequence[str], prompts: dict[str, int]) -> list[Any]:
    """Step, number of the prompt, completion, rewards, their weighted sum, advantage, tokens, cut off, characters."""
    prompt = prompts.setdefault(shortened(sample.prompt, PROMPT), len(prompts))
    rewards = [sample.rewards.get(name) for name in names]
    numbers = [sample.reward, sample.advantage, sample.tokens, sample.cut_off, len(sample.text)]
    return [sample.step, prompt, shortened(sample.text, COMPLETION), rewards, *numbers]
