"""Held-out pass@1: one sampled completion a problem, through the trainer's own generation in every vLLM mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import datasets
from accelerate.utils import gather_object

from grpo_lab.rewards import accuracy
from grpo_lab.worker import algorithms
from grpo_lab.worker.algorithms import Trainer

CHUNK = 128
"""Problems that one process generates at a time."""


def evaluate(trainer: Trainer, problems: datasets.Dataset, on_progress: Callable[[int, int], None]) -> list[int | None]:
    """1 right, 0 wrong, None where the gold answer cannot be read; one a problem, in their order, on every rank.

    Every rank calls it: each takes every `num_processes`-th problem, and all generate equally often. Sampled with
    the trainer's generation settings, temperature included.
    """
    state, total = trainer.accelerator, len(problems)
    share = math.ceil(total / state.num_processes)
    mine = [(state.process_index + turn * state.num_processes) % total for turn in range(share)]
    trainer.model.eval()
    marks: list[tuple[int, int | None]] = []
    for start in range(0, share, CHUNK):
        chunk = mine[start : start + CHUNK]
        marks += zip(chunk, _marks(trainer, problems.select(chunk)), strict=True)
        on_progress(min(total, len(marks) * state.num_processes), total)
    trainer.model.train()
    by_problem = dict(gather_object(marks))
    return [by_problem[problem] for problem in range(total)]


def _marks(trainer: Trainer, chunk: datasets.Dataset) -> list[int | None]:
    rows: list[dict[str, Any]] = list(chunk)
    completions = algorithms.generate(trainer, [row["prompt"] for row in rows])
    values = accuracy(completions=completions, solution=[row["solution"] for row in rows])
    return [None if value is None else int(value == 1.0) for value in values]
