"""What is asked, in the numbers that memory and speed depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import Shape
from grpo_lab.config.schema import Config

PROMPT_TOKENS = 256
"""Assumed where neither data.max_prompt_tokens nor plan.prompt_tokens says it: prompts are not read to answer."""
_KNOWN_PROMPTS = {"grpo_lab.data.arithmetic": 15}
"""Of generated problems."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}


@dataclass(frozen=True)
class Workload:
    shape: Shape
    parameters: int
    active: int
    """Parameters that work on a token."""
    trainable: int
    adapter: str
    """none, lora or qlora."""
    adapted: int
    """Matrices of a layer that have an adapter; of a layer's experts each counts."""
    held_bytes: int
    """Of one trained weight: 4 for float32 (TRL's default), 2 for bfloat16."""
    prompt: int
    completion: int
    """Tokens of one completion, taken to be equally long."""
    completions: int
    """A step, of the whole run."""
    generations: int
    per_device: int
    """Completions that a process takes through the model at a time, at most."""
    iterations: int
    checkpointing: bool
    attention: str
    corrected: bool
    """A pass for vLLM's importance sampling correction."""
    reference: bool
    sleep: bool
    eager: bool
    utilization: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    offload: bool
    cache: float | None = None
    """Bytes of vLLM's KV cache on a GPU, where kv_cache_memory_bytes says it in place of gpu_memory_utilization."""

    @property
    def length(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def served_length(self) -> int:
        """The sequence that vLLM insists to have room for: what is asked, else the model's context."""
        return self.max_model_len or self.shape.context or self.length


def workload(config: Config, *, prompt: int | None = None, completion: int | None = None) -> Workload:
    """`prompt` and `completion`: mean tokens, where they are known better than from the config, as after a run.

    Raises:
        RequestError: where the model's shape or size is not known before it is loaded.
    """
    shape, parameters = policy.shape(config.model), policy.parameters(config.model)
    if shape is None or parameters is None:
        raise RequestError(
            f"model.path={config.model.path}: its shape is not known before it is loaded, so nothing is predicted;"
            " download it, or give model.architecture and model.parameters"
        )
    grpo, engine = config.grpo, config.vllm.engine
    work = Workload(
        shape=shape,
        parameters=parameters,
        active=policy.active_parameters(config.model) or parameters,
        trainable=parameters,
        adapter="none",
        adapted=0,
        held_bytes=_BYTES.get(config.model.dtype, 4),
        prompt=prompt or prompt_tokens(config),
        completion=completion or int(grpo.get("max_completion_length") or 512),
        completions=int(grpo["generation_batch_size"]),
        generations=int(grpo["num_generations"]),
        per_device=int(grpo["per_device_train_batch_size"]),
        iterations=int(grpo.get("num_iterations") or 1),
        checkpointing=bool(grpo.get("gradient_checkpointing", True)),
        attention=config.model.attn or "sdpa",
        corrected=grpo.get("vllm_importance_sampling_correction", True) is not False,
        reference=bool(grpo.get("beta")),
        sleep=config.vllm.sleep,
        eager=bool(engine.get("enforce_eager", False)),
        utilization=config.vllm.gpu_memory_utilization,
        max_model_len=config.vllm.max_model_len,
        max_num_seqs=engine.get("max_num_seqs"),
        max_num_batched_tokens=engine.get("max_num_batched_tokens"),
        offload=config.distributed.offload,
        cache=engine.get("kv_cache_memory_bytes"),
    )
    if config.peft.kind == "none":
        return work
    options = config.peft.options
    return with_adapter(work, config.peft.kind, int(options.get("r", 8)), options.get("target_modules"))


def with_adapter(work: Workload, kind: str = "lora", rank: int = 16, targets: object = None) -> Workload:
    """The same with an adapter; by default that of conf/peft/lora.yaml."""
    matrices = adapted_matrices(work.shape, targets)
    trainable = work.shape.layers * rank * sum(map(sum, matrices))
    return replace(work, adapter=kind, adapted=len(matrices), trainable=trainable)


def prompt_tokens(config: Config) -> int:
    known = _KNOWN_PROMPTS.get(str(config.data.get("_target_")), PROMPT_TOKENS)
    return int(config.plan.prompt_tokens or config.data.get("max_prompt_tokens") or known)


def adapted_matrices(shape: Shape, targets: object) -> list[tuple[int, int]]:
    """Inputs and outputs of a layer's matrices with an adapter, which has r (in + out) parameters for each
    (arXiv:2106.09685, section 4.1). `targets`: names, or anything else for all linear layers but the output."""
    wide, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inward, outward = (shape.hidden, shape.mlp), (shape.mlp, shape.hidden)
    attention = {"q_proj": (shape.hidden, wide), "k_proj": (shape.hidden, kv), "v_proj": (shape.hidden, kv)}
    every = {**attention, "o_proj": (wide, shape.hidden), "gate_proj": inward, "up_proj": inward, "down_proj": outward}
    wanted = set(targets) & set(every) if isinstance(targets, Sequence) and not isinstance(targets, str) else set()
    times = {name: 1 if name in attention or name == "o_proj" else max(1, shape.experts) for name in every}
    return [sizes for name, sizes in every.items() if not wanted or name in wanted for _ in range(times[name])]
