"""What a step leaves behind: one row, the same in metrics.jsonl and in the tracker; and when a run stops."""

from __future__ import annotations

import math
import resource
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_lab.planner.parts import Batch
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.tracker import Tracker
from grpo_lab.worker.clock import Clock
from grpo_lab.worker.patches.passes import Padding
from grpo_lab.worker.soundness import Soundness
from grpo_lab.worker.trainers import Handling

SYNC_METRIC = "sampling/sampling_logp_difference/mean"
"""TRL's mean absolute difference between vLLM's log-probabilities and the trainer's, nats a token."""


class StaleWeights(RuntimeError):
    """vLLM's log-probabilities are too far from the trainer's."""


class Recorder(TrainerCallback):
    """Adds the harness's own numbers to what TRL logs, writes the row, and ends a run whose numbers are broken."""

    def __init__(
        self,
        run: Run,
        clock: Clock,
        batch: Batch,
        *,
        devices: int,
        generating: int,
        tracker: Tracker,
        soundness: Soundness,
        padding: Padding,
        how: Handling,
    ) -> None:
        self.run, self.clock, self.batch, self.tracker, self.soundness = run, clock, batch, tracker, soundness
        self.devices, self.generating, self.how, self.padding = devices, generating, how, padding
        self._lap: dict[str, float] = {}
        self.beside: Row = {}
        """Of the step at hand, measured by others before it is logged."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._lap = self.clock.lap()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Row | None = None, **kwargs: Any
    ) -> None:
        if not logs or "train_runtime" in logs or not self._lap:
            return
        found = self.soundness.end_step(logs)
        if state.is_world_process_zero:
            row = {"step": state.global_step, **logs, **self.beside, **self._measured(logs), **found}
            row = {key: value if _is_finite(value) else None for key, value in row.items()}
            self.run.append_metrics(row)
            self.tracker.log(row, step=state.global_step)
        self._lap, self.beside = {}, {}
        self.soundness.judge(found)

    def _measured(self, logs: Row) -> Row:
        seconds = math.fsum(self._lap.values())
        row: Row = {"step_time_s": seconds, **{f"time_s/{phase}": value for phase, value in self._lap.items()}}
        row["pause_s"] = self.clock.paused_s
        if self.how.reward_column in logs:
            row["reward"] = logs[self.how.reward_column]
        if (padding := self.padding.lap()) is not None:
            row["padding_share"] = padding
        row["peak_memory_gib/trainer"] = peak_memory_gib()
        if torch.cuda.is_initialized():  # without the blocks that torch keeps for later: what reserving more rests on
            row["peak_memory_gib/trainer_allocated"] = torch.cuda.max_memory_allocated() / 2**30
        tokens = logs.get(self.how.tokens_column)
        if tokens is None and "completions/mean_length" in logs:
            tokens = logs["completions/mean_length"] * self.batch.completions
            row["generated_tokens_per_s"] = tokens / self._lap["generate"]
            row["generated_tokens_per_s_per_gpu"] = tokens / self._lap["generate"] / self.generating
        if tokens is not None:
            row["completion_tokens"] = round(tokens)
            row["tokens_per_s_per_gpu"] = tokens / seconds / self.devices
            row["samples_per_s"] = self.batch.completions / seconds
        return row


class SyncCheck(TrainerCallback):
    """Ends a run whose vLLM does not compute what the trainer computes: stale or wrong weights."""

    def __init__(self, every: int, limit: float) -> None:
        self.every, self.limit = every, limit
        self._next = 1

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Row | None = None, **kwargs: Any
    ) -> None:
        if not logs or SYNC_METRIC not in logs or state.global_step < self._next:
            return
        self._next = state.global_step + self.every
        if not logs[SYNC_METRIC] <= self.limit:
            raise StaleWeights(
                f"step {state.global_step}: vLLM's log-probabilities are {logs[SYNC_METRIC]:.3g} nats a token away from"
                f" the trainer's (vllm.max_logp_difference={self.limit:g}): its weights are stale or wrong"
            )


class StopOnRequest(TrainerCallback):
    """Saves a checkpoint and ends after the step at which the stop file is found, on every rank alike."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Within a block of steps on one batch of completions a resumed run would generate that batch again.
        if state.global_step % getattr(args, "num_iterations", 1) == 0 and self._requested(args):
            control.should_save = control.should_training_stop = True

    def _requested(self, args: TrainingArguments) -> bool:
        found = torch.tensor([int(self.run.stop_request.exists())], device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(found, src=0)  # ranks that look a moment later must decide the same
        return bool(found.item())


def peak_memory_gib() -> float:
    """Most memory held at once by this process: of the GPU where there is one (vLLM in it included), else resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
