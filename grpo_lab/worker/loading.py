"""The rows of a run: read, cut to length, and known to fit the model."""

from __future__ import annotations

from typing import Any

import datasets
from hydra.utils import get_method
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOTrainer

from grpo_lab.config import Config
from grpo_lab.plan import data_arguments
from grpo_lab.worker.rewarding import text_of


class BadData(RuntimeError):
    """The rows cannot be trained on."""


def load_data(config: Config, model_path: str) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training rows, and the held-out ones that are evaluated (None where there is nothing to evaluate against).

    `data.max_prompt_tokens` drops longer prompts from both and says in the log how many.
    """
    function = get_method(config.data["_target_"])
    limit = config.data.get("max_prompt_tokens")
    tokenizer = AutoTokenizer.from_pretrained(model_path) if limit else None
    training = _short_enough("train", function("train", **data_arguments(config)), tokenizer, limit)
    if not config.eval.enabled or "solution" not in training.column_names:
        return training, None
    held_out = _short_enough("test", function("test", **data_arguments(config)), tokenizer, limit)
    return training, held_out.select(range(min(config.eval.problems or len(held_out), len(held_out))))


def _short_enough(
    split: str, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase | None, limit: int | None
) -> datasets.Dataset:
    if tokenizer is None or limit is None:
        return rows
    kept = [index for index, prompt in enumerate(rows["prompt"]) if _tokens(prompt, tokenizer) <= limit]
    print(f"data.max_prompt_tokens={limit}: {len(rows) - len(kept)} of {len(rows)} {split} rows dropped", flush=True)
    if not kept:
        raise BadData(f"data.max_prompt_tokens={limit}: every {split} prompt is longer")
    return rows.select(kept)


def _tokens(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])


def check_lengths(config: Config, trainer: GRPOTrainer, training: datasets.Dataset) -> None:
    """The longest prompt (by characters, a good proxy) and a full completion must fit the model's context."""
    limit = config.vllm.max_model_len or getattr(trainer.model.config, "max_position_embeddings", None)
    if limit is None:
        return
    longest = max(training["prompt"], key=lambda prompt: len(text_of(prompt)))
    tokens = len(trainer._tokenize_prompts([longest])[0][0])
    room = tokens + trainer.args.max_completion_length
    if room > limit:
        raise BadData(
            f"the longest prompt has {tokens} tokens, with grpo.max_completion_length="
            f"{trainer.args.max_completion_length} that is {room}, and the limit is {limit}; data.max_prompt_tokens=N"
            " drops longer prompts"
        )
