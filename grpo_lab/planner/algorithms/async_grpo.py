"""TRL's experimental AsyncGRPOTrainer, which generates and scores while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.algorithms.base import PRINTS, Algorithm
from grpo_lab.planner.modes import SERVER, mode

CLASSIFIER = "grpo_lab.rewards.classifier.model"


class AsyncGrpo(Algorithm):
    kind, card = "async_grpo", "asynchronous GRPO"
    config_classes = (*upstream.TRAINER, ("trl", "experimental/async_grpo/async_grpo_config.py", "AsyncGRPOConfig"))
    renamed = {"generation_batch_size": None, "beta": None}
    owned = {"dtype": "model.dtype="}
    absent = (*PRINTS, "reward_weights", "use_vllm", "vllm_mode", "vllm_group_port")
    keeps_completions = False
    sends_key = False  # its other process asks over a session of its own, to which no header can be added

    def arguments(self, planned: dict[str, Any]) -> dict[str, Any]:
        """It would fill each pass by tokens, so that each step had another number of completions."""
        return {"token_budget": 0, **super().arguments(planned)}

    def served_names(self, own: str, model_path: str) -> str | list[str]:
        """It asks for the model by its path."""
        return [own, model_path]

    def check(self, config: Config, machine: Machine, *, on_gpu: bool) -> None:
        """First what the machine lacks, then what AsyncGRPOTrainer does not take."""
        if not mode(config.vllm.mode).served:
            generates = f"algorithm=async_grpo generates beside training; vllm={SERVER.name}"
            raise RequestError(f"vllm={config.vllm.mode}: {generates}")
        if not on_gpu:
            raise RequestError(
                "algorithm=async_grpo: its attention is a FlashAttention-3 kernel, which needs CUDA GPUs"
            )
        if "kernels" not in machine.versions:
            raise RequestError(
                "algorithm=async_grpo: FlashAttention-3 (kernels-community/flash-attn3) comes through the package"
                " kernels, which is not installed; pip install kernels"
            )
        for wrong, reason in _unsupported(config):
            if wrong:
                raise RequestError(reason)
        for name, settings in config.rewards.items():
            if isinstance(settings, dict) and settings.get("_target_") == CLASSIFIER and settings.get("path"):
                raise RequestError(
                    f"rewards.{name}.path={settings['path']}: AsyncGRPOTrainer scores in a process without a GPU;"
                    f" rewards.{name}.url= asks a server"
                )

    def check_prompts(self, config: Config, *, in_plain_text: bool) -> None:
        if in_plain_text:
            raise RequestError(
                f"algorithm=async_grpo: it asks through a chat template, and the prompts of {config.model.name} are"
                " plain text; a model with a chat template and data of messages, or algorithm=grpo"
            )

    def notes(self, config: Config) -> Iterator[str]:
        yield from super().notes(config)
        yield "algorithm=async_grpo: time_s.generate is what the trainer waits for completions; rewards/* are weighted"
        yield "algorithm=async_grpo: TRL compares no log-probabilities, so vLLM's weights are not checked"
        if config.vllm.url is not None:
            yield f"vllm.url={config.vllm.url}: that server must know the model by the path that the trainer has"


def _unsupported(config: Config) -> Iterator[tuple[bool, str]]:
    beta, sharding = config.grpo.get("beta"), config.distributed.kind
    yield bool(beta), f"grpo.beta={beta}: AsyncGRPOTrainer has no reference model; grpo.beta=0"
    yield (
        config.model.attn is not None,
        f"model.attn={config.model.attn}: algorithm=async_grpo has its own; leave model.attn out",
    )
    yield (
        config.vllm.weight_transfer == "gloo",
        "vllm.weight_transfer=gloo: AsyncGRPOTrainer sends its weights through NCCL; nccl, or auto",
    )
    yield (
        sharding.startswith("zero"),
        f"distributed={sharding}: AsyncGRPOTrainer gathers weights of ddp and fsdp2 only; fsdp2",
    )
    yield config.peft.kind == "qlora", "peft=qlora: AsyncGRPOTrainer takes no quantization config; peft=lora"


ALGORITHM = AsyncGrpo()
