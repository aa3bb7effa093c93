"""TRL's trainers: how each is built, made to generate, and where its time goes."""

from __future__ import annotations

import os
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.data_utils import maybe_apply_chat_template

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker import async_grpo as asynchronous
from grpo_lab.worker import rewards as rewarding

Trainer = Any
"""GRPOTrainer, RLOOTrainer, OnlineDPOTrainer or AsyncGRPOTrainer; they share transformers' Trainer and little else."""

_COMPLETIONS_AT = {GRPOTrainer: 3, RLOOTrainer: 2}
"""Trainers that generate from prompts alone -> where the completions are in what `_generate` returns."""
SCORED = {
    "training_step": "train",
    "_generate_and_score_completions": "other",
    "_generate_single_turn": "generate",
    "_calculate_rewards": "reward",
    "_maybe_log_save_evaluate": "pause",
    "_get_per_token_logps_and_entropies": "logprobs",
}
PAIRED = {
    "training_step": "train",
    "_generate": "generate",
    "_calculate_rewards_from_functions": "reward",
    "_maybe_log_save_evaluate": "pause",
    "_forward": "logprobs",
}
OVERLAPPING = {"training_step": "train", "_maybe_log_save_evaluate": "pause"}
"""While completions are made and scored elsewhere."""


def phases(trainer: Trainer) -> dict[str, str]:
    """Method -> phase of the step. What computes log-probabilities counts as that without gradients only."""
    if asynchronous.is_one(trainer):
        return OVERLAPPING
    return SCORED if type(trainer) in _COMPLETIONS_AT else PAIRED


def build(config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
    given: dict[str, Any] = {
        "model": plan.model_path,
        "reward_funcs": rewarding.build(config.rewards, weighted=config.algorithm.kind == "async_grpo"),
        "train_dataset": training,
        "peft_config": _adapter(config),
    }
    if config.algorithm.kind == "online_dpo":
        return _online_dpo(config, plan, given)
    if config.algorithm.kind == "async_grpo":
        return asynchronous.build(plan, given)
    trainer, arguments = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[config.algorithm.kind]
    return trainer(args=arguments(**plan.trl), quantization_config=_quantization(config), **given)


def _online_dpo(config: Config, plan: Plan, given: dict[str, Any]) -> Trainer:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(
        plan.model_path, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    return OnlineDPOTrainer(args=OnlineDPOConfig(**plan.trl), processing_class=tokenizer, **given)


def _adapter(config: Config) -> Any:
    if config.peft.kind == "none":
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **config.peft.options)


def _quantization(config: Config) -> BitsAndBytesConfig | None:
    """As in the QLoRA paper (arXiv:2305.14314, section 3)."""
    if config.peft.kind != "qlora":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def generate(trainer: Trainer, prompts: list[Any]) -> list[Any]:
    """One completion a prompt, sampled with the trainer's settings, in the form that rewards see."""
    if asynchronous.is_one(trainer):
        return asynchronous.generate(trainer, prompts)
    place = _COMPLETIONS_AT.get(type(trainer))
    if place is not None:
        completions = list(trainer._generate(prompts)[place])
        trainer._metrics["eval"].clear()  # generation statistics that would enter the next training log
        return completions
    first_of_each_pair = slice(len(prompts))
    completion_ids = trainer._generate(trainer.model_wrapped, prompts)[2][first_of_each_pair]
    texts = trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(texts, prompts, strict=True)
    ]


def tokens_needed(trainer: Trainer, prompt: Any) -> tuple[int, int]:
    """Of one prompt, and of the longest completion that may follow it."""
    if type(trainer) in _COMPLETIONS_AT:
        return len(trainer._tokenize_prompts([prompt])[0][0]), trainer.args.max_completion_length
    if asynchronous.is_one(trainer):
        return len(asynchronous.token_ids(trainer, [prompt])[0]), trainer.args.max_completion_length
    text = maybe_apply_chat_template({"prompt": prompt}, trainer.processing_class)["prompt"]
    return len(trainer.processing_class(text, add_special_tokens=False)["input_ids"]), trainer.args.max_new_tokens
