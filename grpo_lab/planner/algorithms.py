"""What differs between TRL's trainers: the names of their options, what a pass holds, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.modes import mode

KINDS = tuple(upstream.ALGORITHMS)
CLASSIFIER = "grpo_lab.rewards.classifier.model"
PAIR = 2
"""Completions of a prompt in online DPO."""

_RENAMED: dict[str, dict[str, str | None]] = {
    "online_dpo": {"max_completion_length": "max_new_tokens", "num_generations": None, "generation_batch_size": None},
    "async_grpo": {"generation_batch_size": None, "beta": None},
}
"""Options that every algorithm has here -> their names in the trainer's config; None where it has no such field."""
_OWNED = {
    "online_dpo": {
        "max_new_tokens": "grpo.max_completion_length=",
        "max_length": "nothing: a prompt that does not fit the model is refused, not cut",
        "reward_model_path": "rewards=[classifier] rewards.classifier.path=",
    },
    "async_grpo": {"dtype": "model.dtype="},
}
"""Fields of one trainer's config that follow from the plan -> the key to set instead."""
_PRINTS = ("num_generations_eval", "log_completions", "num_completions_to_print")
_ABSENT = {
    "online_dpo": _PRINTS,
    "async_grpo": (*_PRINTS, "reward_weights", "use_vllm", "vllm_mode", "vllm_group_port"),
}
"""What the plan sets for the other trainers, and this one's config has no field for."""


def passed_on(config: Config) -> dict[str, Any]:
    """What the user set in `grpo`, under the names of the trainer's config."""
    renamed = {key: key for key in config.grpo} | _RENAMED.get(config.algorithm.kind, {})
    return {name: value for key, value in config.grpo.items() if (name := renamed[key]) is not None}


def completions_together(kind: str) -> int:
    """How many completions a pass must take whole."""
    return PAIR if kind == "online_dpo" else 1


def own_arguments(kind: str, planned: dict[str, Any]) -> dict[str, Any]:
    """The plan's arguments as the trainer's config takes them. Online DPO counts prompts where the others count
    completions, would cut long prompts, and would spread the model over all GPUs. Asynchronous GRPO would
    fill each pass by tokens, so that each step had another number of completions."""
    arguments = {key: value for key, value in planned.items() if key not in _ABSENT.get(kind, ())}
    if kind == "online_dpo":
        arguments["per_device_train_batch_size"] //= PAIR
        arguments["max_length"] = 2**31 - 1
        arguments["model_init_kwargs"] = {"device_map": None, **arguments["model_init_kwargs"]}
    if kind == "async_grpo":
        arguments.setdefault("token_budget", 0)
    return arguments


def check_algorithm(config: Config, machine: Machine, *, on_gpu: bool) -> None:
    """Raises RequestError for what the trainer cannot do."""
    kind = config.algorithm.kind
    for key in _OWNED.get(kind, {}).keys() & config.grpo.keys():
        raise RequestError(f"grpo.{key} follows from the plan; set {_OWNED[kind][key]}")
    if kind == "online_dpo":
        _check_online_dpo(config)
    if kind == "async_grpo":
        _check_async(config, machine, on_gpu=on_gpu)


def _check_online_dpo(config: Config) -> None:
    if config.grpo.get("num_generations") != PAIR:
        raise RequestError(
            f"grpo.num_generations={config.grpo.get('num_generations')}: algorithm=online_dpo compares two completions"
            " of a prompt; grpo.num_generations=2"
        )
    if mode(config.vllm.mode).engines:
        raise RequestError(
            f"vllm={config.vllm.mode}: TRL's OnlineDPOTrainer starts and feeds vLLM by itself, without the run's seed,"
            " lengths, engine options or a check of its weights; vllm=off, or algorithm=rloo"
        )
    if config.distributed.kind in ("zero3", "fsdp2"):
        reason = {
            "zero3": "it copies the model as its reference, which TRL refuses under ZeRO-3",
            "fsdp2": "it generates through FSDP1's summon_full_params",
        }[config.distributed.kind]
        raise RequestError(f"distributed={config.distributed.kind}: not with algorithm=online_dpo: {reason}; zero2")
    if config.peft.kind == "qlora":
        raise RequestError("peft=qlora: OnlineDPOTrainer takes no quantization config; peft=lora")


def _check_async(config: Config, machine: Machine, *, on_gpu: bool) -> None:
    """First what the machine lacks, then what AsyncGRPOTrainer does not take."""
    if not mode(config.vllm.mode).served:
        raise RequestError(f"vllm={config.vllm.mode}: algorithm=async_grpo generates beside training; vllm=server")
    if not on_gpu:
        raise RequestError("algorithm=async_grpo: its attention is a FlashAttention-3 kernel, which needs CUDA GPUs")
    if "kernels" not in machine.versions:
        raise RequestError(
            "algorithm=async_grpo: FlashAttention-3 (kernels-community/flash-attn3) comes through the package kernels,"
            " which is not installed; pip install kernels"
        )
    if config.grpo.get("beta"):
        raise RequestError(f"grpo.beta={config.grpo['beta']}: AsyncGRPOTrainer has no reference model; grpo.beta=0")
    if config.model.attn is not None:
        raise RequestError(f"model.attn={config.model.attn}: algorithm=async_grpo has its own; leave model.attn out")
    if config.vllm.weight_transfer == "gloo":
        raise RequestError("vllm.weight_transfer=gloo: AsyncGRPOTrainer sends its weights through NCCL; nccl, or auto")
    if config.distributed.kind.startswith("zero"):
        raise RequestError(
            f"distributed={config.distributed.kind}: AsyncGRPOTrainer gathers weights of ddp and fsdp2 only; fsdp2"
        )
    if config.peft.kind == "qlora":
        raise RequestError("peft=qlora: AsyncGRPOTrainer takes no quantization config; peft=lora")
    for name, settings in config.rewards.items():
        if isinstance(settings, dict) and settings.get("_target_") == CLASSIFIER and settings.get("path"):
            raise RequestError(
                f"rewards.{name}.path={settings['path']}: AsyncGRPOTrainer scores in a process without a GPU;"
                f" rewards.{name}.url= asks a server"
            )


def served_names(config: Config, own: str, model_path: str) -> str | list[str]:
    """What the server answers to. AsyncGRPOTrainer asks for the model by its path; the run knows its server by the
    first name."""
    return [own, model_path] if config.algorithm.kind == "async_grpo" else own


def algorithm_notes(config: Config) -> Iterator[str]:
    """What a run of this algorithm will not have, or TRL warns of."""
    kind, grpo = config.algorithm.kind, config.grpo
    if kind in ("rloo", "online_dpo", "async_grpo"):
        yield f"algorithm={kind}: TRL writes no completions, so there will be no completions.parquet"
    if kind == "rloo" and mode(config.vllm.mode).engines and config.vllm.check_sync_every:
        yield "algorithm=rloo: TRL compares no log-probabilities, so vLLM's weights are not checked"
    if kind == "online_dpo":
        yield "algorithm=online_dpo: TRL counts no completion tokens, so there will be no tokens per second"
    if kind == "async_grpo":
        yield "algorithm=async_grpo: time_s.generate is what the trainer waits for completions; rewards/* are weighted"
        yield "algorithm=async_grpo: TRL compares no log-probabilities, so vLLM's weights are not checked"
        if config.vllm.url is not None:
            yield f"vllm.url={config.vllm.url}: that server must know the model by the path that the trainer has"
    loss = grpo.get("loss_type", "dapo")
    if grpo.get("importance_sampling_level") == "sequence" and loss in ("bnpo", "dr_grpo", "dapo", "cispo"):
        yield f"grpo.loss_type={loss} weights sequence-level ratios by length; GSPO's own is grpo (algorithm=gspo)"
