"""Numbers and names that no run can have, refused before anything starts."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from functools import reduce
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config

INF = math.inf
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 4_294_966),  # times a thousand it must fit 32 bits, which is what numpy's generator takes
    "nodes": (1, 4096),
    "trainer_gpus": (1, 2**16),
    "warmup_steps": (0, INF),
    "vllm.tp": (1, 4096),
    "vllm.dp": (1, 4096),
    "vllm.gpu_memory_utilization": (0.01, 1),
    "vllm.max_model_len": (1, 2**31 - 1),
    "vllm.check_sync_every": (0, INF),
    "vllm.max_logp_difference": (0, INF),
    "eval.problems": (0, INF),
    "evaluate.problems": (0, INF),
    "evaluate.temperature": (0, 1e6),
    "evaluate.batch_size": (1, INF),
    "evaluate.seed": (0, 2**32 - 1),
    "timeouts.startup": (1e-3, INF),
    "timeouts.step": (1e-3, INF),
    "timeouts.sync": (1e-3, INF),
    "launcher.max_parallel": (1, INF),
    "launcher.timeout": (1e-3, INF),
    "launcher.retries": (0, INF),
    "grpo.max_steps": (-1, 2**31 - 1),
    "grpo.generation_batch_size": (1, 2**20),
    "grpo.num_generations": (2, 2**20),
    "grpo.per_device_train_batch_size": (1, 2**20),
    "grpo.max_completion_length": (1, 2**31 - 1),
    "grpo.learning_rate": (0, sys.float_info.max),
    "grpo.temperature": (1e-6, 1e6),
    "grpo.beta": (0, 1e6),
    "grpo.save_steps": (0, 2**31 - 1),
}
"""Least and greatest value; what is null is not looked at."""
NEEDED = ("generation_batch_size", "num_generations", "per_device_train_batch_size")
"""Of `grpo`: without these there is no batch."""
LONGEST_NAME = 200
"""Bytes: file systems take 255, and what is set aside gets an ending."""


def check_ranges(config: Config) -> None:
    """Raises RequestError for a number outside of its range, and for a name that is none of a folder."""
    asked = asdict(config)
    for name in NEEDED:
        if config.grpo.get(name) is None:
            raise RequestError(f"grpo.{name}: a value is needed")
    for key, (low, high) in RANGES.items():
        value = reduce(_below, key.split("."), asked)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not low <= value <= high:
            bound = f"at least {low}" if value < low else f"at most {high}" if value > high else "a number"
            raise RequestError(f"{key}={value}: must be {bound}")
    if config.name is not None:
        _check_name(config.name)


def _below(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None


def _check_name(name: str) -> None:
    bad = not name.strip() or name in (".", "..") or "/" in name or not name.isprintable()
    if bad or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise RequestError(
            f"name={name[:LONGEST_NAME]!r}: the run's folder in runs_dir= cannot be called so; use a word without /"
        )
