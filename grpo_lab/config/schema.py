"""What can be asked: the typed schema of a run, with every default. Compose fills it, planner decides on it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from grpo_lab.config.jobs import BenchConfig, EvaluateConfig, PredictionConfig, PublishConfig
from grpo_lab.config.limits import Bounds, bounded, choice, of_options

INT32 = 2**31 - 1
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
KERNEL = re.compile(r"[^/:@|]+/[^/:@|]+(@[^/:@|]+)?(:[^/:@|]+)?")
"""Attention from the hub, through the package `kernels`: owner/name, @revision, :function."""


@dataclass
class ModelConfig:
    """A policy: where its weights are, and its shape, so that a plan needs no weights."""

    name: str = MISSING
    path: str = MISSING
    """Local folder or hub id. `asset:NAME` is a checkpoint shipped inside the package."""
    weights: str = choice("pretrained", "pretrained", "random")
    """`pretrained`, or `random`: exact architecture, random weights, no download (for timing)."""
    revision: str | None = None
    dtype: str = choice("float32", "float32", "bfloat16", "float16", "auto")
    """Of the trained weights, as in TRL; on GPUs the arithmetic is bf16 all the same (grpo.bf16)."""
    attn: str | None = choice(None, *ATTENTION, pattern=KERNEL, hint="; owner/name is a kernel of the hub")
    trust_remote_code: bool = False
    parameters: int | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    """The fields of the checkpoint's `config.json` that fix its shape, under transformers' own names."""


@dataclass
class VllmConfig:
    """Who generates: transformers (`off`), vLLM in the trainer's processes (`colocate`), or a vLLM server."""

    mode: str = "off"
    tp: int = bounded(1, 1, 4096)
    dp: int = bounded(1, 1, 4096)
    """Number of engines. In server mode vLLM's own data parallelism; in colocate, processes divided by tp."""
    url: str | None = None
    """Use this running server instead of starting one."""
    expose: bool = False
    """Allow a server on a public address. On loopback and private ones it is never asked."""
    sleep: bool = False
    gpu_memory_utilization: float | None = bounded(None, 0.01, 1)
    """Null: 0.3 in colocate mode, where the trainer shares the card; 0.9 in server mode."""
    max_model_len: int | None = bounded(None, 1, INT32)
    """Prompt plus completion, in tokens. Null: the model's context, or what the run needs if that is less."""
    weight_transfer: str = choice("auto", "auto", "nccl", "gloo")
    """`nccl`, `gloo` (through the CPU; for machines without NCCL between the roles), or `auto`."""
    check_sync_every: int = bounded(10, 0)
    """Steps between two comparisons of vLLM's log-probabilities with the trainer's; 0 switches them off."""
    max_logp_difference: float = bounded(0.1, 0)
    """Mean absolute difference (nats a token) above which vLLM's weights are taken for stale or wrong."""
    fast_output: bool = True
    """Colocated: generate token ids without texts, which TRL does not read. It changes no result."""
    engine: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)


@dataclass
class PeftConfig:
    """An adapter; `kind: none` trains every weight. `options` are fields of peft's `LoraConfig`."""

    kind: str = choice("none", "none", "lora", "qlora")
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DistributedConfig:
    """How the trainer's processes share the model."""

    kind: str = choice("ddp", "ddp", "fsdp2", "zero2", "zero3")
    offload: bool = False
    """Optimizer state, and the weights where they are sharded (fsdp2, zero3), in the host's memory."""


@dataclass
class AlgorithmConfig:
    """Which of TRL's trainers learns; the variants of one trainer differ in `grpo`."""

    kind: str = "grpo"


@dataclass
class TrackerConfig:
    kind: str = choice("wandb", "wandb", "trackio", "none")
    mode: str = choice("offline", "offline", "online", "disabled")
    project: str = "grpo-lab"
    entity: str | None = None


@dataclass
class EvalConfig:
    """Held-out evaluation before, during and after training, sampled at the training temperature."""

    enabled: bool = True
    problems: int = bounded(500, 0)
    """The first so many held-out problems; 0 takes all."""
    every: int = bounded(0, 0, wrong="a number of steps, or 0 for before and after only")
    """Steps between evaluations during training; 0: only before and after."""
    every_problems: int | None = None
    """The first so many of `problems`, for the evaluations during training. Null: all of them."""


@dataclass
class TimeoutsConfig:
    """Seconds after which a run that makes no progress is ended."""

    startup: float = bounded(900.0, 1e-3)
    """From the start of the server, and again of the trainer, until it is ready."""
    step: float = bounded(1800.0, 1e-3)
    """For one training step, a checkpoint or 128 problems of an evaluation on each process."""
    sync: float = bounded(600.0, 1e-3)
    """For sending the weights to vLLM once, until it has loaded them."""


@dataclass
class LauncherConfig:
    """How the points of `--multirun` share machines; the launcher itself is chosen by `hydra/launcher=`."""

    exclusive: bool = False
    """One point at a time, on the whole machine: neighbours disturb timings."""
    gpus_per_job: int | None = None
    """GPUs that a point may see. Null: as many as its plan takes."""
    max_parallel: int | None = bounded(None, 1)
    timeout: float | None = bounded(None, 1e-3)
    """Seconds after which a point is ended as failed (timeout)."""
    retries: int = bounded(1, 0)
    """Further tries of a point that failed by `server_died`, `server_timeout` or `killed`."""


@dataclass
class SweepConfig:
    """What a repeated `--multirun` does with the points that it finds: finished are skipped, unfinished resumed."""

    retry: str | None = choice(None, "failed")
    """`failed`: run failed points again."""
    force: bool = False
    """Run every point again; what is there is set aside."""
    name: str | None = None
    """The sweep that a run is a point of; set by the launcher."""
    overrides: list[str] = field(default_factory=list)
    """What distinguishes this point; set by the launcher."""


@dataclass
class LayoutConfig:
    """`layout=auto`: vllm.mode, tp, dp, trainer_gpus and sharding are chosen for this machine."""

    choose: str = choice("manual", "manual", "auto")
    measure: int = bounded(0, 0, wrong="must not be negative; 0 trusts the prediction")
    """So many of the layouts that are predicted to be fastest are timed briefly, and the fastest is kept."""


@dataclass
class Config:
    kind: str = "train"
    """`train` or `bench`; set by the command."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, Any] = field(default_factory=dict)
    """`_target_`: a function `f(split, **the other keys) -> datasets.Dataset`, split being train or test."""
    rewards: dict[str, Any] = field(default_factory=dict)
    """name -> `_target_`, `weight` and the function's own parameters."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    grpo: dict[str, Any] = field(
        default_factory=dict,
        metadata=of_options(
            max_steps=Bounds(-1, INT32),
            generation_batch_size=Bounds(1, 2**20, needed=True),
            num_generations=Bounds(2, 2**20, needed=True),
            per_device_train_batch_size=Bounds(1, 2**20, needed=True),
            max_completion_length=Bounds(1, INT32),
            learning_rate=Bounds(0, sys.float_info.max),
            temperature=Bounds(1e-6, 1e6),
            beta=Bounds(0, 1e6),
            save_steps=Bounds(0, INT32),
        ),
    )
    """Passed to the algorithm's own config, `trl.GRPOConfig` in most cases, less what the plan owns."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    seed: int = bounded(0, 0, 4_294_966)  # times a thousand it must fit 32 bits, as numpy's generator wants
    gpus: Any = "auto"
    """`auto` (all that are visible), a number, or a list of ids."""
    trainer_gpus: int | None = bounded(None, 1, 2**16)
    """Null: server mode, all GPUs that the server leaves; otherwise all."""
    nodes: int = bounded(1, 1, 4096)
    """Machines that the run spans, all alike; `gpus` is then a number of each. A server has machines of its own."""
    hosts: list[str] | None = None
    """Their names, this one first. Null: those of the Slurm job."""
    runs_dir: str = "runs"
    name: str | None = None
    resume: bool | None = None
    """true: go on from the last checkpoint. false: start over, the old folder is set aside. Null: ask."""
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    objective: str = "accuracy_after"
    """What a run returns to a sweeper: a measurement of result.json, such as `tokens_per_s_per_gpu`."""
    stop_on_nan: bool = True
    """End the run (`nan`) at the first NaN or infinite loss, gradient, reward or weight. false: count it and go on."""
    fit: str = choice("refuse", "refuse", "warn", "off")
    """What cannot fit into the GPUs' memory: `refuse` where it is certain, with a warning where it is close; `warn`;
    `off`."""
    hardware: str = "auto"
    """Of `python -m grpo_lab.plan`: this machine, or for example h100-8, or h100-8x16 for sixteen of those."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    plan: PredictionConfig = field(default_factory=PredictionConfig)
    warmup_steps: int = bounded(2, 0)
    """First steps that every timing leaves out."""
    dry_run: bool = False
