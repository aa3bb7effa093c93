"""vLLM's output path without texts, for a colocated engine.

TRL 1.16 decodes the token ids itself and reads neither the text nor the token strings that vLLM makes of every token
and every log-probability, in the trainer's Python thread: half of the time of generation where completions are many.
Token ids and log-probabilities are the same with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs

TokenValues = list[list[list[Any]]]
"""Sequence -> position -> values, as TRL's `extract_logprobs` gives them."""


def is_safe(sampling: SamplingParams) -> bool:
    """Whether nothing in a request needs text: `stop` strings are looked for in it, and more than the sampled token's
    log-probability comes sorted by rank."""
    return not sampling.stop and sampling.logprobs in (None, 0)


def install(engine: Any, trl_generation: Any) -> None:
    """Make the `generate` of a `vllm.LLM` skip texts where that is safe, and TRL's module read what it then gives."""
    generate, extract = engine.generate, trl_generation.extract_logprobs

    def ids_only(prompts: Any, sampling_params: SamplingParams, **options: Any) -> Any:
        if is_safe(sampling_params):
            sampling_params.detokenize = False
            sampling_params.flat_logprobs = True
        return generate(prompts, sampling_params=sampling_params, **options)

    def extract_flat(outputs: Sequence[Any]) -> tuple[TokenValues | None, TokenValues | None]:
        completions = [completion for output in outputs for completion in output.outputs]
        if not all(isinstance(completion.logprobs, FlatLogprobs) for completion in completions):
            return extract(outputs)
        values = [[[_number(value)] for value in completion.logprobs.logprobs] for completion in completions]
        return values, [[[token] for token in completion.logprobs.token_ids] for completion in completions]

    engine.generate = ids_only
    trl_generation.extract_logprobs = extract_flat


def _number(value: float) -> float | None:
    """None for NaN, as TRL has it."""
    return None if math.isnan(value) else value
