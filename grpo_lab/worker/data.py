"""The rows of a run: read, cut to length, and known to fit the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import numpy as np
from hydra.utils import get_method
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo_lab.config.schema import Config
from grpo_lab.planner.layout import prompts_of
from grpo_lab.planner.train import data_arguments
from grpo_lab.store.folder import Row, Run
from grpo_lab.worker.rewards import text_of
from grpo_lab.worker.trainers import Trainer, handling

BATCH = 1000
"""Rows in Python's memory at a time."""


class BadData(RuntimeError):
    """The rows cannot be trained on."""


def load_data(
    config: Config, model_path: str, run: Run | None = None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training rows, and the held-out ones that are evaluated (None where there is nothing to evaluate against).

    `data.max_prompt_tokens` drops longer prompts from both. How many rows there are and how many were dropped is
    written to the outcome of `run`, as `data.train` and `data.test`.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    function, arguments = get_method(config.data["_target_"]), data_arguments(config)
    limit = config.data.get("max_prompt_tokens")
    tokenizer = _tokenizer(config, model_path)
    training, held_out = in_plain_text(function("train", **arguments), tokenizer), None
    evaluated = config.eval.enabled and "solution" in training.column_names
    training, counts = _short_enough("train", training, len(training), tokenizer, limit)
    if len(training) < (needed := prompts_of(config.grpo)):
        raise BadData(
            f"{len(training)} training rows are left, and one step takes {needed} (grpo.generation_batch_size /"
            " grpo.num_generations); raise data.max_prompt_tokens, give more rows or a smaller batch"
        )
    rows = {"train": counts}
    if evaluated:
        held_out = in_plain_text(function("test", **arguments), tokenizer)
        held_out, counts = _short_enough("test", held_out, config.eval.problems or len(held_out), tokenizer, limit)
        rows["test"] = counts
    if run is not None and os.environ.get("RANK", "0") == "0":
        run.update_outcome(data=rows)
    return training, held_out


def in_plain_text(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """The rows with the texts of their messages as prompts, where the tokenizer has no chat template to write them."""
    if getattr(tokenizer, "chat_template", None) or isinstance(rows[0]["prompt"], str):
        return rows
    print("no chat template: prompts are asked in plain text", flush=True)
    texts = ["\n\n".join(str(message["content"]) for message in prompt) + "\n" for prompt in rows["prompt"]]
    return rows.remove_columns("prompt").add_column("prompt", texts)


def _tokenizer(config: Config, model_path: str) -> PreTrainedTokenizerBase:
    model = config.model
    return AutoTokenizer.from_pretrained(model_path, revision=model.revision, trust_remote_code=model.trust_remote_code)


def _short_enough(
    split: str, rows: datasets.Dataset, wanted: int, tokenizer: PreTrainedTokenizerBase | None, limit: int | None
) -> tuple[datasets.Dataset, Row]:
    """The first `wanted` rows that are not too long, and the count; rows after them are not looked at."""
    wanted = min(wanted, len(rows))
    if tokenizer is None or limit is None:
        return rows.select(range(wanted)), {"rows": wanted, "too_long": 0}
    kept = np.fromiter(islice(_fitting(rows, tokenizer, limit), wanted), dtype=np.int64)
    seen = int(kept[-1]) + 1 if len(kept) == wanted else len(rows)
    dropped = seen - len(kept)
    print(f"data.max_prompt_tokens={limit}: {dropped} of {seen} {split} rows dropped", flush=True)
    if len(kept) == 0:
        raise BadData(f"data.max_prompt_tokens={limit}: every {split} prompt is longer")
    return rows.select(kept), {"rows": len(kept), "too_long": dropped}


def _prompts(rows: datasets.Dataset) -> Iterator[list[Any]]:
    for batch in rows.select_columns("prompt").iter(BATCH):
        yield batch["prompt"]


def _fitting(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, limit: int) -> Iterator[int]:
    """Indices of the prompts of at most `limit` tokens."""
    start = 0
    for prompts in _prompts(rows):
        if isinstance(prompts[0], str):
            tokens = tokenizer(prompts)["input_ids"]
        else:
            tokens = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
        yield from (start + place for place, ids in enumerate(tokens) if len(ids) <= limit)
        start += len(prompts)


def check_lengths(config: Config, trainer: Trainer, training: datasets.Dataset) -> None:
    """The longest prompt (by characters, a good proxy) and a full completion must fit the model's context."""
    limit = config.vllm.max_model_len or getattr(trainer.model.config, "max_position_embeddings", None)
    if limit is None:
        return
    longest = max((prompt for prompts in _prompts(training) for prompt in prompts), key=lambda one: len(text_of(one)))
    tokens, completion = handling(trainer).tokens_needed(trainer, longest)
    room = tokens + completion
    if room > limit:
        raise BadData(
            f"the longest prompt has {tokens} tokens, with grpo.max_completion_length={completion} that is {room}, and"
            f" the limit is {limit}; data.max_prompt_tokens=N drops longer prompts"
        )
