"""Sections of the config that one command beside train reads; they are no part of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grpo_lab.config.limits import bounded, choice

FORMATS = ("table", "json", "csv")


@dataclass
class EvaluateConfig:
    """`python -m grpo_lab.evaluate`: pass@k of a policy."""

    checkpoint: Any = "last"
    """Checkpoint of a run: `last`, `before` (the untrained model), or a step."""
    k: list[int] = field(default_factory=lambda: [1])
    """The k of each pass@k to report."""
    samples: int | None = None
    """Completions a problem. Default: the largest k."""
    problems: int = bounded(0, 0)
    """Number of held-out problems, the first ones; 0 takes all."""
    temperature: float | None = bounded(None, 0, 1e6)
    """Sampling temperature; 0 is greedy. Default: the training temperature."""
    batch_size: int | None = bounded(None, 1)
    """Completions at a time, and what a killed evaluation loses at most. Default: 64, with vLLM 4096."""
    seed: int = bounded(0, 0, 2**32 - 1)
    """Seed of the sampling."""


@dataclass
class BenchConfig:
    """`python -m grpo_lab.bench`: speed of generation."""

    prompts: int = 64
    """Requests of a round, each with a prompt of its own."""
    num_generations: int = 8
    """Completions of each prompt, in one request."""
    prompt_len: Any = 512
    """Tokens of a prompt: a number, or [low, high] for uniformly drawn lengths."""
    completion_len: Any = 512
    """Tokens of a completion, likewise; completions of a prompt have the same length."""
    concurrency: int | None = None
    """Requests in flight. Default: all at once."""
    warmup: int = bounded(1, 0)
    """First rounds of each load that are left out."""
    repeats: int = bounded(3, 1)
    """Rounds of each load that are measured."""
    timed_every: int | None = None
    """Stream and time every Nth request; streaming slows the server. Default: 16, or less under 128 requests."""
    loads: dict[str, Any] = field(default_factory=dict)
    """name -> keys of this section that differ, except warmup and repeats. One start measures all loads. Default: a
    single load, `default`."""


@dataclass
class PublishConfig:
    """The trained policy and its model card on the Hugging Face Hub, after a run that finished."""

    repo_id: str | None = None
    """`owner/name`, made if it does not exist; `name` alone belongs to the token's owner. Default: nothing is
    published."""
    private: bool = True
    """Make a new repository private."""


@dataclass
class PredictionConfig:
    """`python -m grpo_lab.plan`: assumptions of the prediction, and what it shows."""

    format: str = choice("table", *FORMATS)
    """`table`, `json` or `csv`."""
    top: int = 12
    """Layouts that the table shows; json and csv have all."""
    generation: bool = False
    """Predict a server on all GPUs without training, as `python -m grpo_lab.bench` runs it."""
    prompt_tokens: int | None = None
    """Mean length of the prompts, which are not read for a prediction. Default: data.max_prompt_tokens, else 256."""
    calibration: str | None = None
    """File that `python -m grpo_lab.plan calibrate` wrote. Default: the shipped calibration."""
