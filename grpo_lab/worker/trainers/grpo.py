"""TRL's GRPOTrainer."""

from __future__ import annotations

import datasets
from trl import GRPOConfig, GRPOTrainer

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker.trainers.base import Handling, Trainer, given, quantization


class Grpo(Handling):
    def build(self, config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
        arguments, quantized = given(config, plan, training), quantization(config)
        return GRPOTrainer(args=GRPOConfig(**plan.trl), quantization_config=quantized, **arguments)


HANDLING = Grpo()
