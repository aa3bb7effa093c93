"""The few places where TRL 1.16's use of vLLM has to be told something that it has no option for."""

from __future__ import annotations

from typing import Any

from trl import GRPOTrainer

from grpo_lab.config import Config


def prepare(config: Config, plan: dict[str, Any]) -> None:
    """Before the trainer is built."""


def seed(trainer: GRPOTrainer, config: Config) -> None:
    """Make the run's seed reach vLLM's sampling."""
