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
    """A policy: the place of its weights and its shape, so that a plan needs no weights."""

    name: str = MISSING
    """Name in the run's folder, tables and model card."""
    path: str = MISSING
    """Local folder or hub id. `asset:NAME` is a checkpoint shipped inside the package."""
    weights: str = choice("pretrained", "pretrained", "random")
    """`pretrained`, or `random`: exact architecture, random weights, no download (for timing)."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Default: its main branch."""
    dtype: str = choice("float32", "float32", "bfloat16", "float16", "auto")
    """Type of the trained weights, as in TRL. GPUs compute in bf16 all the same (grpo.bf16)."""
    attn: str | None = choice(None, *ATTENTION, pattern=KERNEL, hint="; owner/name is a kernel of the hub")
    """Attention of transformers, or `owner/name`, a kernel of the hub. Default: transformers' choice."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the checkpoint."""
    parameters: int | None = None
    """Number of weights. Default: counted from the checkpoint."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of the checkpoint's `config.json` that fix its shape, under transformers' own names."""


@dataclass
class VllmConfig:
    """The generator: transformers (`off`), vLLM in the trainer's processes (`colocate`), or a vLLM server
    (`server`)."""

    mode: str = "off"
    """`off`, `colocate` or `server`."""
    tp: int = bounded(1, 1, 4096)
    """GPUs of an engine (tensor parallelism)."""
    dp: int = bounded(1, 1, 4096)
    """Number of engines. A server has vLLM's own data parallelism; colocated, it is processes divided by tp."""
    url: str | None = None
    """Address of a server that runs already. Default: the run starts its own."""
    expose: bool = False
    """Allow a server on a public address. Loopback and private addresses need no leave."""
    sleep: bool = False
    """Colocated: free the engine's memory while the trainer works."""
    gpu_memory_utilization: float | None = bounded(None, 0.01, 1)
    """Share of a GPU's memory for vLLM. Default: 0.3 colocated, where the trainer shares the card; 0.9 for a server."""
    max_model_len: int | None = bounded(None, 1, INT32)
    """Tokens of prompt and completion together. Default: the model's context, or what the run needs if that is less."""
    weight_transfer: str = choice("auto", "auto", "nccl", "gloo")
    """`nccl`, `gloo` (through the CPU, for machines without NCCL between the roles), or `auto`."""
    check_sync_every: int = bounded(10, 0)
    """Steps between two comparisons of vLLM's log-probabilities with the trainer's; 0 switches them off."""
    max_logp_difference: float = bounded(0.1, 0)
    """Mean absolute difference (nats a token) above which vLLM's weights count as stale or wrong."""
    fast_output: bool = True
    """Colocated: generate token ids without texts, which TRL does not read. Changes no result."""
    engine: dict[str, Any] = field(default_factory=dict)
    """vLLM's engine arguments, under their own names, less what the plan owns."""
    env: dict[str, Any] = field(default_factory=dict)
    """Environment variables of the run's processes."""


@dataclass
class PeftConfig:
    """An adapter; `kind: none` trains every weight."""

    kind: str = choice("none", "none", "lora", "qlora")
    """`none`, `lora`, or `qlora` (the base model in four bits)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of peft's `LoraConfig`."""


@dataclass
class DistributedConfig:
    """Sharing of the model among the trainer's processes."""

    kind: str = choice("ddp", "auto", "ddp", "fsdp2", "zero2", "zero3")
    """`auto` (what is predicted to fit), `ddp` (each has all of it), `fsdp2`, `zero2` or `zero3`."""
    offload: bool = False
    """Keep the optimizer's state, and sharded weights (fsdp2, zero3), in the host's memory."""


@dataclass
class AlgorithmConfig:
    """The trainer of TRL that learns; variants of one trainer differ in `grpo`."""

    kind: str = "grpo"
    """Name of a module of planner/algorithms."""


@dataclass
class TrackerConfig:
    """Where metrics go beside the run's folder."""

    kind: str = choice("wandb", "wandb", "trackio", "none")
    """`wandb`, `trackio` or `none`."""
    mode: str = choice("offline", "offline", "online", "disabled")
    """`offline` (into the run's folder), `online` or `disabled`."""
    project: str | None = "grpo-lab"
    """Project under which the tracker lists the run. Null: one of the run's own name."""
    entity: str | None = None
    """Team or user. Default: the account's own."""
    space_id: str | None = None
    """Space of the Hub that shows a trackio run (`owner/name`, made if it does not exist). Needs `mode: online`."""


@dataclass
class EvalConfig:
    """Held-out evaluation before, during and after training, sampled at the training temperature."""

    enabled: bool = True
    """Evaluate at all."""
    problems: int = bounded(500, 0)
    """Number of held-out problems, the first ones; 0 takes all."""
    every: int = bounded(0, 0, wrong="a number of steps, or 0 for before and after only")
    """Steps between evaluations during training; 0: only before and after."""
    every_problems: int | None = None
    """Number of `problems`, the first ones, for evaluations during training. Default: all of them."""


@dataclass
class TimeoutsConfig:
    """Seconds after which a run that makes no progress is ended."""

    startup: float = bounded(900.0, 1e-3)
    """From the start of the server, and again of the trainer, until it is ready."""
    step: float = bounded(1800.0, 1e-3)
    """For one training step, a checkpoint, or 128 problems of an evaluation on each process."""
    sync: float = bounded(600.0, 1e-3)
    """For sending the weights to vLLM once, until it has loaded them."""


@dataclass
class LauncherConfig:
    """Sharing of machines by the points of `--multirun`; `hydra/launcher=` chooses the launcher itself."""

    exclusive: bool = False
    """Run one point at a time, on the whole machine: neighbours disturb timings."""
    gpus_per_job: int | None = None
    """GPUs that a point may see. Default: as many as its plan takes."""
    max_parallel: int | None = bounded(None, 1)
    """Points at a time, at most. Default: as many as fit."""
    timeout: float | None = bounded(None, 1e-3)
    """Seconds after which a point is ended as failed (timeout). Default: none."""
    retries: int = bounded(1, 0)
    """Further tries of a point that failed by `server_died`, `server_timeout` or `killed`."""


@dataclass
class SweepConfig:
    """A repeated `--multirun`: finished points are skipped, unfinished ones resumed."""

    retry: str | None = choice(None, "failed")
    """`failed`: run failed points again."""
    force: bool = False
    """Run every point again; earlier results are set aside."""
    name: str | None = None
    """Sweep that a run is a point of; set by the launcher."""
    overrides: list[str] = field(default_factory=list)
    """Overrides that distinguish this point; set by the launcher."""


@dataclass
class LayoutConfig:
    """`layout=auto` chooses vllm.mode, tp, dp, trainer_gpus and sharding for this machine."""

    choose: str = choice("manual", "manual", "auto")
    """`manual` (as asked) or `auto`."""
    measure: int = bounded(0, 0, wrong="must not be negative; 0 trusts the prediction")
    """Number of layouts, the fastest by prediction, that are timed briefly to keep the fastest; 0 trusts the
    prediction."""


@dataclass
class Config:
    """All that can be asked of a run."""

    kind: str = "train"
    """`train` or `bench`; set by the command."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, Any] = field(default_factory=dict)
    """`_target_`: a function `f(split, **the other keys) -> datasets.Dataset`; split is `train` or `test`."""
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
    """Options of the algorithm's own config, `trl.GRPOConfig` in most cases, less what the plan owns."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    seed: int = bounded(0, 0, 4_294_966)  # times a thousand it must fit 32 bits, as numpy's generator wants
    """Seed of weights, data and sampling."""
    gpus: Any = "auto"
    """`auto` (all that are visible), a number, or a list of ids."""
    trainer_gpus: int | None = bounded(None, 1, 2**16)
    """GPUs of the trainer. Default: all, in server mode all that the server leaves."""
    nodes: int = bounded(1, 1, 4096)
    """Machines that the run spans, all alike; `gpus` is then the number on each. A server has machines of its own."""
    hosts: list[str] | None = None
    """Names of the machines, this machine first. Default: the machines of the Slurm job."""
    runs_dir: str = "runs"
    """Folder of all runs."""
    name: str | None = None
    """Name of the run's folder. Default: model, data, layout and a hash of the config."""
    resume: bool | None = None
    """true: go on from the last checkpoint. false: start over, the old folder is set aside. Default: refuse and ask."""
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    passes: str = choice("auto", "auto", "tokens", "rows")
    """Passes of a step through the model: `tokens` (completions sorted by length, each pass as wide as its longest),
    `rows` (TRL's: shuffled, all as wide as the longest), or `auto`: tokens on GPUs if no gradient depends on it."""
    objective: str = "accuracy_after"
    """Measurement of result.json that a run returns to a sweeper, such as `tokens_per_s_per_gpu`."""
    stop_on_nan: bool = True
    """End the run (`nan`) at the first NaN or infinite loss, gradient, reward or weight. false: count it and go on."""
    fit: str = choice("refuse", "refuse", "warn", "off")
    """A run that cannot fit into the GPUs' memory: `refuse` where that is certain (where it is close, warn), `warn`,
    `off`."""
    hardware: str = "auto"
    """Machine of `python -m grpo_lab.plan`: `auto` (this machine), or for example h100-8, or h100-8x16 for sixteen."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    plan: PredictionConfig = field(default_factory=PredictionConfig)
    rehearse: bool = True
    """Call each reward of your own once on a made-up completion of a real row before anything starts."""
    warmup_steps: int = bounded(2, 0)
    """Number of first steps that every timing leaves out."""
    dry_run: bool = False
    """Show the plan and the commands; start nothing."""
