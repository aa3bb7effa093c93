"""One training run of one process: build the trainer, evaluate, train, evaluate, say how it went."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import requests
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from grpo_lab.config import compose as configuration
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import DiskFull, full_disk
from grpo_lab.machine.logs import OUT_OF_MEMORY
from grpo_lab.planner.train import Plan
from grpo_lab.store import completions, records, tracker
from grpo_lab.store import folder as store
from grpo_lab.store import train as results
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Env, Failure, Progress
from grpo_lab.worker import rewards as rewarding
from grpo_lab.worker import saving, trainers
from grpo_lab.worker.clock import Clock, attach
from grpo_lab.worker.data import BadData, check_lengths, load_data
from grpo_lab.worker.held_out import InBetween, evaluate
from grpo_lab.worker.patches import passes, trl, vllm
from grpo_lab.worker.recording import (
    Recorder,
    StaleWeights,
    StopOnRequest,
    SyncCheck,
    peak_memory_gib,
)
from grpo_lab.worker.soundness import BROKEN_SAMPLING, NotANumber, Soundness
from grpo_lab.worker.trainers import Trainer

FAILURES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (rewarding.BadReward, "bad_reward"),
    (BadData, "bad_data"),
    (NotANumber, "nan"),
    (DiskFull, "disk_full"),
    (StaleWeights, "error"),
    (torch.cuda.OutOfMemoryError, "oom"),
    ((requests.exceptions.ConnectionError, requests.exceptions.RetryError, ConnectionError), "server_died"),
    (requests.exceptions.ChunkedEncodingError, "server_died"),
    (requests.exceptions.RequestException, "error"),
    (KeyboardInterrupt, "killed"),
)
"""Exceptions with a class of their own in result.json; every other one is a `worker_crash`."""
REFUSED = "Request failed: "
"""TRL's client on an answer other than 200, as a plain Exception."""


def train(folder: Path, *, started: float) -> None:
    """Run to the end. An exception leaves its class in outcome.json on the way out, its traceback in the log."""
    run = Run(folder)
    sys.excepthook = functools.partial(_report, run)
    _train(run, started)


def _report(run: Run, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last word of a failing process. Of several ranks the first one tells; the others fail because it did."""
    sys.__excepthook__(kind, error, trace)
    if run.read_outcome().failure is None:
        error = _recognized(error, run)
        known, message = _explain(error)
        if known == "server_died" and not records.must_read(run.plan, Plan).generation.served:
            known = "error"
        if known == "disk_full":
            run.ballast.unlink(missing_ok=True)
        failure = Failure(known, message, str(run.worker_log))
        run.update_outcome(failure=failure, peak_memory_gib=peak_memory_gib())


def _recognized(error: BaseException, run: Run) -> BaseException:
    """The failure behind an exception of somebody else's code."""
    if BROKEN_SAMPLING in str(error):
        return NotANumber(f"the model's probabilities are NaN or infinite, so its weights are broken ({error})")
    return full_disk(error, run.folder) or error


def _explain(error: BaseException) -> tuple[str, str]:
    """Class and message."""
    if type(error) is Exception and str(error).startswith(REFUSED):
        status = str(error).removeprefix(REFUSED)
        return "server_died" if status.startswith("5") else "error", f"the vLLM server answered {status}"
    known = next((name for expected, name in FAILURES if isinstance(error, expected)), None)
    if known == "oom" or (known is None and OUT_OF_MEMORY.search(str(error))):
        return "oom", str(error).partition(" Of the allocated memory")[0]  # the log has torch's whole paragraph
    if known is None:
        return "bad_model" if _while_loading(error) else "worker_crash", f"{type(error).__name__}: {error}"
    return known, str(error) or type(error).__name__


def _while_loading(error: BaseException) -> bool:
    """Whether transformers raised it from a checkpoint that it was reading."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loading = (frame for frame in frames if frame.f_code.co_name == "from_pretrained")
    return any(str(frame.f_globals.get("__name__")).startswith("transformers.") for frame in loading)


def _train(run: Run, started: float) -> None:
    config, plan = configuration.load(run.config), records.must_read(run.plan, Plan)
    training, held_out = load_data(config, plan.model_path, run)
    trainer = build_trainer(config, plan, training)
    padding = passes.attach(trainer, plan.sorted_passes)
    log = _open_tracker(config, run, trainer)
    clock = Clock(functools.partial(_tell, run) if trainer.is_world_process_zero() else lambda phase: None)
    attach(clock, trainer)
    soundness = Soundness(trainer, stop=config.stop_on_nan)
    saving.attach(trainer, run, soundness)
    trl.train_only_what_is_left(trainer)
    devices = {"devices": plan.devices, "generating": plan.generating_devices}
    how = trainers.handling(trainer)
    seen = {"soundness": soundness, "padding": padding}
    recorder = Recorder(run, clock, plan.batch, **devices, **seen, tracker=log, how=how)
    trainer.add_callback(recorder)
    if plan.generation.engines and config.vllm.check_sync_every:
        trainer.add_callback(SyncCheck(config.vllm.check_sync_every, config.vllm.max_logp_difference))
    trainer.add_callback(_Course(config, run, trainer, clock, held_out, started))
    if held_out is not None and config.eval.every:
        trainer.add_callback(
            InBetween(config.eval, run, trainer, recorder, held_out, rewarding.held_out_rule(config.rewards))
        )
    trainer.add_callback(StopOnRequest(run))
    trainer.add_callback(saving.AtBlockEnds())
    checkpoint = run.last_checkpoint()
    finished = False
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
        finished = trainer.state.global_step >= trainer.state.max_steps
    except rewarding.BadReward:
        saving.save_after_failure(trainer)
        raise
    except RuntimeError as error:
        if (cause := how.cause(error)) is error:
            raise
        saving.save_after_failure(trainer)
        raise cause from error
    finally:
        log.finish(results.accuracy(run), exit_code=0 if finished else 1)
    if trainer.is_world_process_zero():
        ended = {"finished": finished, "look": log.how_to_look(), "peak_memory_gib": peak_memory_gib()}
        run.update_outcome(**ended)


def build_trainer(config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
    with vllm.adapted(config, plan):
        trainer = trainers.build(config, plan, training)
    trainer.reward_func_names = list(config.rewards)  # TRL calls a reward model after its folder
    check_lengths(config, trainer, training)
    return trainer


def _open_tracker(config: Config, run: Run, trainer: Trainer) -> tracker.Tracker:
    settings = config.tracker if trainer.is_world_process_zero() else dataclasses.replace(config.tracker, kind="none")
    return tracker.open_tracker(
        settings,
        folder=run.folder,
        run_id=records.must_read(run.env, Env).run_id,
        name=run.folder.name,
        group=config.sweep.name,
        tags=[config.model.name, config.vllm.mode, *config.sweep.overrides],
        config={**dataclasses.asdict(config), "overrides": dict(_pairs(config.sweep.overrides))},
        earlier=run.rows(),
    )


def _pairs(overrides: list[str]) -> list[list[str]]:
    """`key=value` as key and value."""
    return [text.split("=", 1) for text in overrides if "=" in text]


def _tell(run: Run, doing: str | None) -> None:
    """What the worker is waiting for, beside where it is, for the conductor's watchdog."""
    if (progress := records.read(run.progress, Progress)) is not None:
        records.write(run.progress, dataclasses.replace(progress, doing=doing))


class _Course(TrainerCallback):
    """What happens around the steps: evaluation before and after, seeds, progress.

    Inside the trainer's own start and end, because only there is the model wrapped for its ranks.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        trainer: Trainer,
        clock: Clock,
        held_out: datasets.Dataset | None,
        started: float,
    ) -> None:
        self.config, self.run, self.trainer, self.clock = config, run, trainer, clock
        self.held_out, self.started = held_out, started

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.run.update_outcome(startup_s=time.perf_counter() - self.started)
        vllm.seed(self.trainer, self.config)
        if state.global_step == 0:
            self._evaluate("before")
        vllm.seed(self.trainer, self.config)  # again: the steps do not depend on how many problems were evaluated
        self._progress("training", state.global_step, state.max_steps)
        self.clock.lap()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress("training", state.global_step, state.max_steps)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            self._evaluate("after")

    def _evaluate(self, moment: str) -> None:
        if self.held_out is None:
            return
        self._progress(f"evaluating {moment}", 0, len(self.held_out))
        answers = evaluate(
            self.trainer,
            self.held_out,
            rewarding.held_out_rule(self.config.rewards),
            lambda done, total: self._progress(f"evaluating {moment}", done, total),
        )
        if self.trainer.is_world_process_zero():
            marks = [answer.mark for answer in answers]
            texts = [answer.text for answer in answers]
            completions.save_answers(self.run, moment, self.held_out["prompt"], texts, marks)
            store.write_json(self.run.evaluation(moment), marks)

    def _progress(self, phase: str, done: int, total: int) -> None:
        if self.trainer.is_world_process_zero():
            records.write(self.run.progress, Progress(phase, done, total))
