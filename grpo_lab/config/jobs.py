"""Sections of the config that one command beside train reads; they are no part of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grpo_lab.config.limits import bounded, choice

FORMATS = ("table", "json", "csv")


@dataclass
class EvaluateConfig:
    """What `python -m grpo_lab.evaluate` does with a policy; no part of a training run."""

    checkpoint: Any = "last"
    """Of a run: `last`, `before` (the untrained model), or a step."""
    k: list[int] = field(default_factory=lambda: [1])
    """The k of each pass@k to report."""
    samples: int | None = None
    """Completions a problem. Null: the largest k."""
    problems: int = bounded(0, 0)
    """The first so many held-out problems; 0 takes all."""
    temperature: float | None = bounded(None, 0, 1e6)
    """Null: the training temperature. 0 is greedy."""
    batch_size: int | None = bounded(None, 1)
    """Completions at a time, and what a killed evaluation loses at most. Null: 64, with vLLM 4096."""
    seed: int = bounded(0, 0, 2**32 - 1)
    """Of the sampling."""


@dataclass
class BenchConfig:
    """What `python -m grpo_lab.bench` generates; no part of a training run."""

    prompts: int = 64
    num_generations: int = 8
    """Completions of each prompt, in one request."""
    prompt_len: Any = 512
    """Tokens of a prompt: a number, or [low, high] for uniformly drawn ones."""
    completion_len: Any = 512
    """Tokens of a completion, likewise; those of one prompt have one length."""
    concurrency: int | None = None
    """Requests in flight. Null: all at once."""
    warmup: int = bounded(1, 0)
    """First rounds of each load that are left out."""
    repeats: int = bounded(3, 1)
    """Rounds of each load that are measured."""
    timed_every: int | None = None
    """Every how many requests one is streamed and its tokens timed, which costs speed. Null: 16, fewer of few."""
    loads: dict[str, Any] = field(default_factory=dict)
    """name -> those of the keys that differ, but warmup and repeats. All are measured after one start; empty:
    one, `default`."""


@dataclass
class PublishConfig:
    """The trained policy and its model card on the Hugging Face Hub, after a run that finished."""

    repo_id: str | None = None
    """`owner/name`, made if it is not there; `name` alone is the token's owner's. Null: nothing is published."""
    private: bool = True
    """Of a repository that is made."""


@dataclass
class PredictionConfig:
    """What `python -m grpo_lab.plan` assumes and shows; no part of a run."""

    format: str = choice("table", *FORMATS)
    """table, json or csv."""
    top: int = 12
    """Layouts that the table shows; json and csv have all."""
    generation: bool = False
    """A server on all GPUs and no training, as `python -m grpo_lab.bench` runs it."""
    prompt_tokens: int | None = None
    """Mean of the prompts. Null: data.max_prompt_tokens, else 256; prompts are not read for a prediction."""
    calibration: str | None = None
    """A file that `python -m grpo_lab.plan calibrate` wrote. Null: the one that is shipped."""
