"""Lengths and sizes of the model: what vLLM can split, and what fits its context."""

from __future__ import annotations

import math

from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import Shape
from grpo_lab.config.schema import Config
from grpo_lab.planner.modes import mode


def check_length(config: Config) -> None:
    limit = config.vllm.max_model_len
    if limit is None:
        return
    if limit < (need := _tokens_needed(config)):
        raise RequestError(f"vllm.max_model_len={limit}: prompt + completion need {need} tokens")


def _tokens_needed(config: Config) -> int:
    """Tokens of a prompt and its completion, as far as they are known before the data are read."""
    prompt, completion = config.data.get("max_prompt_tokens"), config.grpo.get("max_completion_length", 512)
    return (prompt if isinstance(prompt, int) else 1) + (completion or 1)


def check_shape(config: Config, shape: Shape | None, *, on_gpu: bool) -> None:
    """Refuse a tensor-parallel size that vLLM cannot split this model over (vllm.model_executor: `divide`), lengths
    beyond the model's context, and weights that vLLM cannot update. Checks nothing without a shape (:func:`unchecked`).
    """
    if shape is None:
        return
    name, tp = config.model.name, config.vllm.tp
    if shape.experts and mode(config.vllm.mode).engines and not on_gpu:
        raise RequestError(
            f"vllm={config.vllm.mode}: on a CPU vLLM packs the experts of {name} in a layout of its own, which weights"
            " from the trainer would destroy; vllm=off"
        )
    if shape.heads % tp:
        raise RequestError(f"vllm.tp={tp} does not divide the {shape.heads} attention heads of {name}")
    if shape.kv_heads % tp and tp % shape.kv_heads:
        raise RequestError(f"vllm.tp={tp} neither divides nor is a multiple of the {shape.kv_heads} kv heads of {name}")
    for what, size in (
        ("size of an expert" if shape.experts else "mlp size", shape.mlp),
        ("vocabulary, padded to a multiple of 64,", 64 * math.ceil(shape.vocab / 64)),
    ):
        if size % tp:
            raise RequestError(f"vllm.tp={tp} does not divide the {what} of {size} of {name}")
    _check_tied(config, shape)
    if shape.context is None:
        return
    want, need = config.vllm.max_model_len, _tokens_needed(config)
    if want and want > shape.context:
        raise RequestError(f"vllm.max_model_len={want}: {name} has a context of {shape.context}")
    if need > shape.context:
        raise RequestError(
            f"grpo.max_completion_length={config.grpo.get('max_completion_length')}: with the prompt {need} tokens, and"
            f" {name} has a context of {shape.context}"
        )


EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")


def _check_tied(config: Config, shape: Shape) -> None:
    """An adapter parts an output layer from the embedding that it was tied to; vLLM has one tensor for both."""
    if config.peft.kind == "none" or not (shape.tied and mode(config.vllm.mode).engines):
        return
    for option in ("modules_to_save", "target_modules"):
        asked = config.peft.options.get(option)
        for module in {asked} if isinstance(asked, str) else set(asked or ()):
            if module.rpartition(".")[2] in EMBEDDINGS:
                raise RequestError(
                    f"peft.options.{option}: {config.model.name} has one tensor for embeddings and output layer, which"
                    f" {module} would part, and vLLM cannot (vllm={config.vllm.mode}); leave it out, or vllm=off"
                )


def unchecked(config: Config, shape: Shape | None) -> tuple[str, ...]:
    """Notes for the user on checks that this plan leaves to the run."""
    if shape is not None:
        return ()
    return (
        f"the shape of {config.model.path} is not known before it is loaded: vllm.tp against its heads and sizes, and"
        " lengths against its context, are not checked",
    )
