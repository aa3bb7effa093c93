"""Checkpoints that are whole or not there: room and weights are checked before, a list of the files is written last."""

from __future__ import annotations

import functools
import shutil
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from grpo_lab.machine.disk import DiskFull, check_room, writing
from grpo_lab.store import checkpoints
from grpo_lab.store.folder import Run
from grpo_lab.worker.patches import trl
from grpo_lab.worker.soundness import Soundness
from grpo_lab.worker.trainers import Trainer


def attach(trainer: Trainer, run: Run, soundness: Soundness) -> None:
    """Make the trainer save so. Older checkpoints go (grpo.save_total_limit) when the new one is whole, not before."""
    most, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    trl.replace_saving(trainer, functools.partial(_save, trainer, run, soundness, most))


class AtBlockEnds(TrainerCallback):
    """Puts a checkpoint off to the end of the steps on one batch of completions (grpo.num_iterations).

    A run that goes on from inside such a block generates that batch again, and every later one is another than in an
    undisturbed run (TRL 1.16).
    """

    def __init__(self) -> None:
        self._due = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._due = self._due or control.should_save
        inside = state.global_step % getattr(args, "num_iterations", 1) and state.global_step < state.max_steps
        control.should_save = self._due and not inside
        self._due = self._due and bool(inside)


def save_after_failure(trainer: Trainer) -> None:
    """Keep the steps done so far when a step fails; only where no other rank has to take part."""
    if trainer.accelerator.num_processes == 1 and trainer.state.global_step > 0:
        trl.save_checkpoint(trainer)


def _save(
    trainer: Trainer, run: Run, soundness: Soundness, most: int | None, write: Any, model: Any, trial: Any
) -> None:
    """Raises DiskFull, with nothing of the checkpoint left; NotANumber."""
    folder, first = run.checkpoint(trainer.state.global_step), trainer.is_world_process_zero()
    soundness.check_weights()
    needed = _size(trainer, run)
    check_room(folder, needed)
    if first and folder.is_dir():
        checkpoints.unseal(folder)
    try:
        with writing(folder, needed):
            write(model, trial)
            trainer.accelerator.wait_for_everyone()
            if first:
                checkpoints.seal(folder)
    except DiskFull:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if first:
        rotate_checkpoints(str(run.checkpoints), save_total_limit=most, use_mtime=True)


def _size(trainer: Trainer, run: Run) -> int:
    """Bytes that a checkpoint takes: the last one's; of the first at least the trained weights'."""
    last = run.last_checkpoint()
    if last is not None:
        return checkpoints.size(last[0])
    return sum(one.numel() * one.element_size() for one in trainer.model.parameters() if one.requires_grad)
