"""One module for each trainer (`algorithm.kind`), which is found by its name: how it is built, made to generate, and
where its time goes. What a plan asks about it is in the module of the same name in planner/algorithms."""

from __future__ import annotations

from importlib import import_module

import datasets

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker.trainers.base import Handling, Trainer

__all__ = ["Handling", "Trainer", "build", "handling"]

_ATTRIBUTE = "grpo_lab_handling"


def build(config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
    """The trainer of `algorithm.kind`, which :func:`handling` knows from now on."""
    how: Handling = import_module(f"{__name__}.{config.algorithm.kind}").HANDLING
    trainer = how.build(config, plan, training)
    setattr(trainer, _ATTRIBUTE, how)
    return trainer


def handling(trainer: Trainer) -> Handling:
    """How to handle a trainer made by :func:`build`."""
    found: Handling = getattr(trainer, _ATTRIBUTE)
    return found
