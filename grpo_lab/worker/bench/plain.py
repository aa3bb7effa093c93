"""Generation by transformers: batches of as many requests as may be in flight."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria

from grpo_lab.config.schema import Config
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.loads import Load, Request
from grpo_lab.store.rounds import Arrivals, BenchFailed, Measured

PADDING = 0
"""Masked, so any token will do."""


class Lengths(StoppingCriteria):
    """Ends each completion at its own length; what generate() computes beyond it counts for nothing."""

    def __init__(self, prompt: int, lengths: torch.Tensor) -> None:
        self.ends = prompt + lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


class Transformers:
    """Generator (grpo_lab.store.rounds) of one process. It times no tokens, has no KV cache of fixed size."""

    tells, kv_cache_tokens = True, None

    def __init__(self, config: Config, plan: BenchPlan) -> None:
        model = config.model
        options = {"attn_implementation": model.attn} if model.attn else {}
        self.model = AutoModelForCausalLM.from_pretrained(
            plan.model_path,
            dtype=plan.dtype,
            revision=model.revision if plan.model_path == model.path else None,
            trust_remote_code=model.trust_remote_code,
            **options,
        )
        self.model.to("cuda" if plan.trainer_gpus else "cpu").eval()
        self.model.generation_config = GenerationConfig()  # generate() would take end tokens and the like from it
        self.seed = config.seed

    def measure(self, requests: Sequence[Request], load: Load) -> Measured:
        torch.manual_seed(self.seed)
        started = time.perf_counter()
        tokens = sum(
            self._batch(requests[first : first + load.in_flight], load.num_generations)
            for first in range(0, len(requests), load.in_flight)
        )
        return Measured(time.perf_counter() - started, tokens, {"0": tokens}, Arrivals())

    def _batch(self, requests: Sequence[Request], completions: int) -> int:
        longest, most = max(len(one.prompt) for one in requests), max(one.length for one in requests)
        device = self.model.device
        ids = [[PADDING] * (longest - len(one.prompt)) + list(one.prompt) for one in requests]
        mask = [[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in requests]
        lengths = torch.tensor([one.length for one in requests for _ in range(completions)], device=device)
        settings = GenerationConfig(
            max_new_tokens=most,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=completions,
            pad_token_id=PADDING,
            eos_token_id=None,
            disable_compile=True,
        )
        with torch.no_grad():
            whole = self.model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=settings,
                stopping_criteria=[Lengths(longest, lengths)],
            )
        if whole.shape != (len(lengths), longest + most):
            raise BenchFailed(f"generate() gave {tuple(whole.shape)}, not {(len(lengths), longest + most)}")
        return int(lengths.sum())


def generator(config: Config, plan: BenchPlan) -> Transformers:
    return Transformers(config, plan)
