"""How the worker handles a trainer. The answers here are those for GRPOTrainer and what is derived from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import torch
from transformers import BitsAndBytesConfig

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker import rewards as rewarding
from grpo_lab.worker.patches import trl

Trainer = Any
"""GRPOTrainer, RLOOTrainer, OnlineDPOTrainer or AsyncGRPOTrainer; they share transformers' Trainer and little else."""


class Handling:
    phases: Mapping[str, str] = trl.SCORED
    """Method -> phase of the step. What computes log-probabilities counts as that without gradients only."""
    completions_at = 3
    """Place of the completions in what `_generate` returns."""

    reward_column = "reward"
    """The mean reward, in what the trainer logs."""
    tokens_column = ""
    """Completion tokens of a step, in what a trainer logs that makes them at another time."""

    def build(self, config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
        raise NotImplementedError

    def generate(self, trainer: Trainer, prompts: list[Any]) -> list[Any]:
        """One completion a prompt, sampled with the trainer's settings, in the form that rewards see."""
        return trl.generate(trainer, prompts, self.completions_at)

    def tokens_needed(self, trainer: Trainer, prompt: Any) -> tuple[int, int]:
        """Tokens of one prompt, and of the longest completion that may follow it."""
        return trl.prompt_tokens(trainer, prompt), trainer.args.max_completion_length

    def waits(self, trainer: Trainer) -> Iterator[tuple[Any, str, str]]:
        """Objects other than the trainer, their methods, and the phases of the step that these take."""
        if trainer.use_vllm:
            yield trainer.vllm_generation, "sync_weights", "sync"

    def catch_up(self, trainer: Trainer) -> None:
        """Bring the weights to where an evaluation generates, unless generation does so. Every rank calls it."""

    def cause(self, error: RuntimeError) -> RuntimeError:
        """The failure that ended another process of the trainer, or the error itself."""
        return error


def given(config: Config, plan: Plan, training: datasets.Dataset, *, weighted: bool = False) -> dict[str, Any]:
    """The arguments that every trainer takes. `weighted`: for a trainer that only adds rewards up."""
    return {
        "model": plan.model_path,
        "reward_funcs": rewarding.build(config.rewards, weighted=weighted),
        "train_dataset": training,
        "peft_config": _adapter(config),
    }


def _adapter(config: Config) -> Any:
    if config.peft.kind == "none":
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **config.peft.options)


def quantization(config: Config) -> BitsAndBytesConfig | None:
    """As in the QLoRA paper (arXiv:2305.14314, section 3)."""
    if config.peft.kind != "qlora":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
