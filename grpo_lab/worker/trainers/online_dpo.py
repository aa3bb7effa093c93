"""TRL's experimental OnlineDPOTrainer, which makes two completions of each prompt."""

from __future__ import annotations

import os
from typing import Any

import datasets
from transformers import AutoTokenizer
from trl.data_utils import maybe_apply_chat_template

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker.patches import trl
from grpo_lab.worker.trainers.base import Handling, Trainer, given


class OnlineDpo(Handling):
    phases = trl.PAIRED
    reward_column = "objective/scores"

    def build(self, config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        model = config.model
        tokenizer = AutoTokenizer.from_pretrained(
            plan.model_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        arguments = given(config, plan, training)
        return OnlineDPOTrainer(args=OnlineDPOConfig(**plan.trl), processing_class=tokenizer, **arguments)

    def generate(self, trainer: Trainer, prompts: list[Any]) -> list[Any]:
        first_of_each_pair = slice(len(prompts))
        completion_ids = trl.generate_pairs(trainer, prompts)[first_of_each_pair]
        texts = trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        return [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def tokens_needed(self, trainer: Trainer, prompt: Any) -> tuple[int, int]:
        text = maybe_apply_chat_template({"prompt": prompt}, trainer.processing_class)["prompt"]
        ids = trainer.processing_class(text, add_special_tokens=False)["input_ids"]
        return len(ids), trainer.args.max_new_tokens


HANDLING = OnlineDpo()
