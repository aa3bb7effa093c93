"""Which samples `grpo-lab show` prints, and in which order."""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from grpo_lab.conductor import samples
from grpo_lab.config.errors import RequestError
from grpo_lab.store import completions
from grpo_lab.store.completions import Sample
from grpo_lab.store.folder import Run

FEW, FOLLOWED = 6, 2
"""Samples that are shown of a step, and of each step that is followed."""


def show(console: Console, run: Run, asked: argparse.Namespace) -> None:
    """Print what was asked for. Raises RequestError."""
    if not run.folder.is_dir():
        raise RequestError(f"{run.folder}: no such folder; show wants the folder of a run")
    longest = None if asked.full else samples.SHORT
    if asked.changed:
        return _changed(console, run, asked.count, longest)
    if asked.follow:
        return _follow(console, run, asked.count or FOLLOWED, longest)
    shown, scale, total = _chosen(run, asked)
    for sample in shown:
        samples.show(console, sample, scale, longest)
    console.print(Text(f"{len(shown)} of {total:,} completions in {run.folder}", "dim"), soft_wrap=True)


def _chosen(run: Run, asked: argparse.Namespace) -> tuple[list[Sample], samples.Scale, int]:
    """What is to be shown, in order; the range of all rewards; how many completions there are. Raises RequestError."""
    reading = _Reading(asked.step)
    of_step = (sample for sample in reading.through(completions.samples(run)) if asked.step in (None, sample.step))
    if count := asked.worst or asked.best:
        largest = heapq.nlargest if asked.best else heapq.nsmallest
        shown = largest(count, (sample for sample in of_step if sample.reward is not None), key=_reward)
    elif asked.problem:
        shown = [sample for sample in of_step if sample.problem == asked.problem][: asked.count]
    else:
        shown = samples.spread(_last_step(of_step), asked.count or FEW)
    if not reading.total:
        raise RequestError(_none(run))
    if not shown:
        raise RequestError(reading.missing(asked))
    return shown[: asked.count], samples.Scale(reading.low, reading.high), reading.total


def _none(run: Run) -> str:
    """Why there is nothing, and what there is below a folder of several runs."""
    below = sorted(str(config.parent) for config in run.folder.glob(f"*/{run.config.name}"))
    if not run.config.exists() and below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"{run.folder} is no run; name one: {', '.join(below[:3])}{more}"
    return f"{run.folder} has no completions: no step was recorded, or its trainer (online_dpo, async_grpo) keeps none"


class _Reading:
    """What was seen while completions are read once."""

    def __init__(self, step: int | None) -> None:
        self.step, self.total, self.problems = step, 0, 0
        self.first, self.last = sys.maxsize, 0
        self.low, self.high = float("inf"), float("-inf")

    def through(self, several: Iterable[Sample]) -> Iterable[Sample]:
        for sample in several:
            self.total, self.problems = self.total + 1, max(self.problems, sample.problem)
            self.first, self.last = min(self.first, sample.step), max(self.last, sample.step)
            if sample.reward is not None:
                self.low, self.high = min(self.low, sample.reward), max(self.high, sample.reward)
            yield sample

    def missing(self, asked: argparse.Namespace) -> str:
        if asked.problem and asked.problem > self.problems:
            return f"--problem {asked.problem}: the run has problems 1 to {self.problems}"
        if asked.step and not self.first <= asked.step <= self.last:
            return f"--step {asked.step}: the run has steps {self.first} to {self.last}"
        return "no completion fits; leave out --step, or choose another"


def _last_step(several: Iterable[Sample]) -> list[Sample]:
    kept: list[Sample] = []
    for sample in several:
        if kept and sample.step != kept[0].step:
            kept.clear()
        kept.append(sample)
    return kept


def _reward(sample: Sample) -> float:
    assert sample.reward is not None
    return sample.reward


def _changed(console: Console, run: Run, count: int | None, longest: int | None) -> None:
    changes = completions.changes(run)
    for right_after, words in ((False, "right before and wrong after"), (True, "wrong before and right after")):
        fitting = [change for change in changes if change.right_after is right_after]
        for change in fitting[:count]:
            samples.show_change(console, change, longest)
        console.print(Text(f"{len(fitting)} held-out problems {words}\n", "dim"))


def _follow(console: Console, run: Run, count: int, longest: int | None) -> None:
    for several in samples.follow(run):
        scale = samples.Scale.of(sample.reward for sample in several)
        for sample in samples.spread(several, count):
            samples.show(console, sample, scale, longest)
