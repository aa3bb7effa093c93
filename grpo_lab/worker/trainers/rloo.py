"""TRL's RLOOTrainer."""

from __future__ import annotations

import datasets
from trl import RLOOConfig, RLOOTrainer

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker.trainers.base import Handling, Trainer, given, quantization


class Rloo(Handling):
    completions_at = 2

    def build(self, config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
        arguments, quantized = given(config, plan, training), quantization(config)
        return RLOOTrainer(args=RLOOConfig(**plan.trl), quantization_config=quantized, **arguments)


HANDLING = Rloo()
