"""Whether a step's passes are sorted by length (tokens) or TRL's (rows)."""

from __future__ import annotations

from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import Shape
from grpo_lab.config.schema import Config
from grpo_lab.planner.algorithms import algorithm


def by_tokens(config: Config, shape: Shape | None, *, on_gpu: bool) -> bool:
    """What `passes` means here. `auto` needs a known shape: models of others may have absolute positions or a loss of
    their own.

    Raises:
        RequestError: for `tokens` where gradients depend on which completions share a pass.
    """
    reason = algorithm(config.algorithm.kind).grouped(config, shape)
    if config.passes == "tokens" and reason:
        raise RequestError(f"passes=tokens, {reason}; passes=rows")
    return config.passes == "tokens" or (config.passes == "auto" and on_gpu and shape is not None and not reason)
