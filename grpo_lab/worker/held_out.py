"""Held-out pass@1: one sampled completion a problem, through the trainer's own generation in every vLLM mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState

from grpo_lab.config.schema import EvalConfig
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store import train as results
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Progress
from grpo_lab.worker.patches import trl
from grpo_lab.worker.recording import Recorder
from grpo_lab.worker.rewards import Reward, right, text_of
from grpo_lab.worker.trainers import Trainer, handling

CHUNK = 128
"""Problems that one process generates at a time."""


@dataclass(frozen=True)
class Answer:
    text: str
    mark: int | None
    """1 right, 0 wrong, None where the gold answer cannot be read."""


def evaluate(
    trainer: Trainer, problems: datasets.Dataset, rule: Reward, on_progress: Callable[[int, int], None]
) -> list[Answer]:
    """One answer a problem, in their order, on every rank.

    Every rank calls it: each takes every `num_processes`-th problem, and all generate equally often. Sampled with
    the trainer's generation settings, temperature included.
    """
    state, total = trainer.accelerator, len(problems)
    share = math.ceil(total / state.num_processes)
    mine = [(state.process_index + turn * state.num_processes) % total for turn in range(share)]
    handling(trainer).catch_up(trainer)
    trainer.model.eval()
    answers: list[tuple[int, Answer]] = []
    for start in range(0, share, CHUNK):
        chunk = mine[start : start + CHUNK]
        answers += zip(chunk, _answer(trainer, problems.select(chunk), rule), strict=True)
        on_progress(min(total, len(answers) * state.num_processes), total)
    trainer.model.train()
    by_problem = dict(gather_object(answers))
    return [by_problem[problem] for problem in range(total)]


def _answer(trainer: Trainer, chunk: datasets.Dataset, rule: Reward) -> list[Answer]:
    rows: list[dict[str, Any]] = list(chunk)
    completions = handling(trainer).generate(trainer, [row["prompt"] for row in rows])
    marks = (None if mark is None else int(mark) for mark in right(rule, completions, rows))
    return [Answer(text_of(completion), mark) for completion, mark in zip(completions, marks, strict=True)]


class InBetween(TrainerCallback):
    """Evaluates every so many steps: `eval/accuracy`, `eval/n` and `eval/time_s` in the row of the step.

    The last step is left to the evaluation after training. The steps do not depend on it, their times included: it
    draws its random numbers aside, stops the clock, and leaves the next step to bring its weights to vLLM itself.
    A server's own random numbers go on.
    """

    def __init__(
        self,
        asked: EvalConfig,
        run: Run,
        trainer: Trainer,
        recorder: Recorder,
        held_out: datasets.Dataset,
        rule: Reward,
    ) -> None:
        self.rule = rule
        self.every, self.run, self.trainer, self.recorder = asked.every, run, trainer, recorder
        self.problems = held_out.select(range(min(asked.every_problems or len(held_out), len(held_out))))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every or state.global_step >= state.max_steps:
            return
        started = time.perf_counter()
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with self.recorder.clock.stopped(), torch.random.fork_rng(devices):
            answers = evaluate(self.trainer, self.problems, self.rule, self._progress)
        trl.bring_weights_again(self.trainer)
        accuracy = results.proportion([answer.mark for answer in answers])
        if accuracy is not None:
            seconds = time.perf_counter() - started
            self.recorder.beside = {"eval/accuracy": accuracy["value"], "eval/n": accuracy["n"], "eval/time_s": seconds}
        self._show(store.STEPPING[0], state.global_step, state.max_steps)

    def _progress(self, done: int, total: int) -> None:
        self._show(store.STEPPING[1], done, total)

    def _show(self, phase: str, done: int, total: int) -> None:
        if self.trainer.is_world_process_zero():
            records.write(self.run.progress, Progress(phase, done, total))
