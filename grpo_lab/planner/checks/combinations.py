"""Combinations of options that TRL, transformers or vLLM refuse late, or get wrong, refused before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config, EvalConfig
from grpo_lab.config.suited import prompt_notes
from grpo_lab.planner.modes import mode


def check_combinations(config: Config) -> None:
    """Raises RequestError with the first reason."""
    for wrong, reason in (*_adapter(config), *_options(config.grpo), *_generation(config), *_evaluation(config.eval)):
        if wrong:
            raise RequestError(reason)


NO_OP = (True, "true", "gaussian", "orthogonal", "mica")
"""Values of init_lora_weights with which an adapter changes nothing before it is trained."""


UNMERGED = {
    "trainable_token_indices": "such weights are no part of the merged model",
    "alora_invocation_tokens": "peft cannot merge an adapter that begins within a prompt",
    "layer_replication": "the merged model has other layers than the base",
    "lora_bias": "peft merges it only into layers that have a bias",
}
"""Options of LoraConfig with which the merged weights are not the base's, and why."""


def unresumable(grpo: dict[str, Any]) -> str | None:
    """The option with which a checkpoint lacks what an exact resumption takes, and what that is."""
    if grpo.get("save_only_model"):
        return "grpo.save_only_model=true leaves optimizer, learning rate and random numbers out of checkpoints"
    if grpo.get("sync_ref_model"):
        return "grpo.sync_ref_model=true: the synchronised reference model is not part of checkpoints"
    return None


def _adapter(config: Config) -> Iterator[tuple[bool, str]]:
    peft, kind = config.peft, config.distributed.kind
    targets, quantized = peft.options.get("target_modules"), peft.kind == "qlora"
    start = peft.options.get("init_lora_weights", True)
    # peft issue 2184: PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA put a part of the base into the adapter; False adds noise.
    yield (
        peft.kind != "none" and (start.lower() if isinstance(start, str) else start) not in NO_OP,
        f"peft.options.init_lora_weights={str(start).lower()}: the model without its adapter would not be the one that"
        " training starts from, which is the reference of the KL penalty and what checkpoints are loaded on;"
        " peft.options.init_lora_weights=true, gaussian or orthogonal",
    )
    for option, reason in UNMERGED.items():
        yield (
            peft.kind != "none" and mode(config.vllm.mode).engines and bool(peft.options.get(option)),
            f"peft.options.{option}: {reason}, so it cannot go to vLLM (vllm={config.vllm.mode}); leave it out,"
            " or vllm=off",
        )
    yield (
        peft.kind != "none" and isinstance(targets, list) and "lm_head" in targets,
        "peft.options.target_modules: TRL takes log-probabilities from lm_head's own weights, so an adapter on it would"
        " never be trained; leave lm_head out",
    )
    # trl issues 4973 and 3466: merging leaves 4-bit bytes or full weights, and vLLM has the other shape or old scales.
    yield (
        quantized and mode(config.vllm.mode).engines,
        f"peft=qlora vllm={config.vllm.mode}: TRL cannot bring 4-bit weights to vLLM; peft=lora, or vllm=off",
    )
    # accelerate leaves 4-bit weights out of FSDP2's sharding; transformers loads them without zero.Init.
    yield (
        quantized and kind in ("fsdp2", "zero3"),
        f"peft=qlora distributed={kind}: 4-bit weights are not sharded; distributed=ddp or zero2, or peft=lora",
    )
    yield (
        config.distributed.offload and kind == "ddp",
        "distributed.offload=true: ddp has nothing to offload; distributed=zero2, zero3 or fsdp2",
    )


def _options(grpo: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    yield (
        bool(grpo.get("auto_find_batch_size")),
        "grpo.auto_find_batch_size: a smaller batch would break the groups of completions;"
        " lower grpo.per_device_train_batch_size",
    )
    yield (
        bool(grpo.get("sync_ref_model")) and not grpo.get("beta"),
        "grpo.sync_ref_model=true: without grpo.beta there is no reference model to synchronise",
    )
    bounds = [grpo.get("vllm_importance_sampling_clip_min"), grpo.get("vllm_importance_sampling_clip_max", 3.0)]
    yield (
        grpo.get("vllm_importance_sampling_mode") in ("token_truncate", "sequence_truncate") and bounds == [None, None],
        "grpo.vllm_importance_sampling_mode: to truncate, set grpo.vllm_importance_sampling_clip_max=",
    )


def _generation(config: Config) -> Iterator[tuple[bool, str]]:
    grpo, adapted = config.grpo, config.peft.kind != "none"
    through_vllm = mode(config.vllm.mode).engines
    yield (
        adapted and bool(grpo.get("sync_ref_model")),
        "grpo.sync_ref_model=true: with an adapter the reference is the model without it; grpo.sync_ref_model=false",
    )
    yield (
        through_vllm and config.distributed.kind == "zero3" and grpo.get("ds3_gather_for_generation") is False,
        "grpo.ds3_gather_for_generation=false: vLLM needs the gathered weights; leave it true, or vllm=off",
    )
    corrected = grpo.get("vllm_importance_sampling_correction", True)
    correction = grpo.get("vllm_importance_sampling_mode", "sequence_mask")
    yield (
        through_vllm and grpo.get("loss_type") == "vespo" and corrected and not correction.startswith("token"),
        "grpo.loss_type=vespo: set grpo.vllm_importance_sampling_mode=token_truncate or token_mask",
    )


def _evaluation(asked: EvalConfig) -> Iterator[tuple[bool, str]]:
    yield (
        bool(asked.every) and not asked.enabled,
        f"eval.every={asked.every}: eval.enabled=false switches every evaluation off; leave one of them out",
    )
    yield (
        asked.every_problems is not None and (asked.every_problems < 1 or not asked.every),
        f"eval.every_problems={asked.every_problems}: a number of problems, together with eval.every=STEPS",
    )


def combination_notes(config: Config) -> Iterator[str]:
    """Notes for the user on combinations that work but are untried, or do not fit each other."""
    yield from prompt_notes(config)
    if config.peft.kind != "none" and config.distributed.kind == "fsdp2" and mode(config.vllm.mode).engines:
        yield "TRL merges an adapter that fsdp2 has sharded before it sends it to vLLM, and marks this as untried"
