"""The processes of a run: arguments for TRL, command lines, environments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import random_folder
from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import Config, DistributedConfig
from grpo_lab.machine.gpus import Machine
from grpo_lab.machine.nodes import Host
from grpo_lab.machine.visible import environment
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.planner.modes import memory_share, mode
from grpo_lab.planner.parts import Batch, Command, Ports, Roles
from grpo_lab.server.command import PATIENT, ServerPlan, flags, server_argv, server_env
from grpo_lab.server.exposure import check_bind
from grpo_lab.server.key import KEY

RUN_VARIABLE = "GRPO_LAB_RUN"
"""In the environment of every process of a run: its folder, for whoever finds the process."""


def trl_arguments(
    config: Config, batch: Batch, *, on_gpu: bool, server: ServerPlan | None, folder: Path, ports: Ports
) -> dict[str, Any]:
    """What the trainer's config takes: what the user passed on, less the batch, plus what follows from the plan."""
    trainer = algorithm(config.algorithm.kind)
    passed = {key: value for key, value in trainer.passed_on(config).items() if key != "generation_batch_size"}
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
        **mode(config.vllm.mode).trl_arguments(config, server.url if server else None, ports),
    }
    if passed.get("save_steps") == 0:
        owned["save_strategy"] = "no"  # else transformers saves at the end, whatever save_steps is
    defaults = {
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "log_completions": True,
        "num_completions_to_print": 0,
    }
    return trainer.arguments({**defaults, **passed, **owned, **_sharding(config.distributed)})


_ZERO: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def _sharding(distributed: DistributedConfig) -> dict[str, Any]:
    """Offloading leaves in the host's memory what the processes share: the optimizer's state, from stage 3 weights."""
    if distributed.kind == "ddp":
        return {}
    if distributed.kind == "fsdp2":
        return {"fsdp": "full_shard", "fsdp_config": {"version": 2, "cpu_offload": distributed.offload}}
    to_host = {"device": "cpu", "pin_memory": True}
    zero: dict[str, Any] = {"stage": 2}
    if distributed.kind == "zero3":
        zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
        zero |= {"offload_param": to_host} if distributed.offload else {}
    zero |= {"offload_optimizer": to_host} if distributed.offload else {}
    return {"deepspeed": {**_ZERO, "zero_optimization": zero}}


def _model_init(config: Config) -> dict[str, Any]:
    wanted = {"dtype": config.model.dtype, "revision": config.model.revision, "attn_implementation": config.model.attn}
    return {key: value for key, value in wanted.items() if value is not None}


def server_of(
    config: Config, machine: Machine, folder: Path, model_path: str, roles: Roles, ports: Ports
) -> ServerPlan | None:
    """What to start in server mode; None in the other modes and for a server that runs already (`vllm.url`)."""
    vllm = config.vllm
    if not roles.server:
        return None
    host, gpus = roles.server[0], roles.server_gpus
    check_bind(config, host.address, host.name)
    on_cpu, backend = not gpus, weight_transfer(config, on_gpu=bool(gpus))
    assert backend is not None  # only a mode with a server has roles.server
    if backend == "gloo" and "grpo-lab" not in machine.versions:
        raise RequestError("vllm.weight_transfer=gloo: vLLM finds it through the installed package; pip install -e .")
    trainer = algorithm(config.algorithm.kind)
    served_name = f"{folder.name}-{ports.http}"
    argv = server_argv(
        model_path,
        served_name=trainer.served_names(served_name, model_path),
        host=host.address,
        port=ports.http,
        tp=vllm.tp,
        dp=vllm.dp,
        backend=backend,
        seed=config.seed,
        max_model_len=vllm.max_model_len,
        gpu_memory_utilization=None if on_cpu else memory_share(config),
        engine={**_spread(config, roles, ports), **engine_options(config, on_gpu=not on_cpu)},
        version=machine.versions["vllm"],
        guarded=trainer.sends_key,
    )
    env = server_env(
        on_cpu=on_cpu,
        tp=vllm.tp,
        dp=vllm.dp // len(roles.server),
        cores=machine.cores,
        gpus=gpus,
        engine=vllm.engine,
    )
    env |= {RUN_VARIABLE: str(folder.resolve()), **{key: str(value) for key, value in vllm.env.items()}}
    env |= {} if trainer.sends_key else {KEY: ""}
    url = f"http://{host.address}:{ports.http}"
    return ServerPlan(tuple(argv), env, url, served_name, vllm.tp, vllm.dp, backend, config.seed)


def _spread(config: Config, roles: Roles, ports: Ports) -> dict[str, Any]:
    """Options of a server that spans several hosts: vLLM's data parallelism with one front end, on the first."""
    if len(roles.server) == 1:
        return {}
    return {
        "data_parallel_size_local": config.vllm.dp // len(roles.server),
        "data_parallel_address": roles.server[0].address,
        "data_parallel_rpc_port": ports.engines,
    }


def engines_of(config: Config, server: ServerPlan | None, roles: Roles) -> tuple[Command, ...]:
    """The engines of the server on its further hosts. They wait for its front end, and it for them."""
    if server is None:
        return ()
    local = config.vllm.dp // len(roles.server)
    return tuple(
        Command(
            host.reach([*server.argv, *flags({"headless": True, "data_parallel_start_rank": rank * local})]),
            {**server.env, **_elsewhere(host)},
            host.name,
        )
        for rank, host in enumerate(roles.server)
        if rank > 0
    )


def engine_options(config: Config, *, on_gpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments. On a CPU vLLM computes in the trainer's precision and compiles nothing."""
    model = config.model
    same_model = {"revision": model.revision, "trust_remote_code": model.trust_remote_code or None}
    on_cpu = {"enforce_eager": True, "dtype": model.dtype}
    chosen = {key: value for key, value in same_model.items() if value is not None}
    return {**chosen, **({} if on_gpu else on_cpu), **config.vllm.engine}


def weight_transfer(config: Config, *, on_gpu: bool) -> str | None:
    """How weights reach a server: NCCL between GPUs, gloo through the CPU elsewhere or where it is asked for. None
    without a server."""
    if not mode(config.vllm.mode).served:
        return None
    wanted = config.vllm.weight_transfer
    if wanted == "nccl" and not on_gpu:
        raise RequestError("vllm.weight_transfer=nccl: NCCL needs GPUs; vllm.weight_transfer=gloo")
    return ("nccl" if on_gpu else "gloo") if wanted == "auto" else wanted


def trainer_of(
    config: Config, machine: Machine, folder: Path, roles: Roles, ports: Ports, *, module: str = "grpo_lab.worker"
) -> tuple[Command, ...]:
    """One command for each of the trainer's hosts, in the order of their ranks. `module`: what it runs."""
    worker = ["-m", module, str(folder)]
    return tuple(
        Command(
            host.reach([sys.executable, *_launcher(config, roles, rank, ports), *worker]),
            _trainer_env(config, machine, folder, roles, host, ports),
            host.name,
        )
        for rank, host in enumerate(roles.trainer)
    )


def _launcher(config: Config, roles: Roles, rank: int, ports: Ports) -> list[str]:
    """One process runs plainly. Several start through `accelerate launch` on GPUs; on a CPU, where accelerate
    wants MPI for that, through torch's own launcher."""
    hosts, first = len(roles.trainer), roles.trainer[0].address
    if roles.processes == 1 and config.distributed.kind == "ddp":
        return []
    if roles.trainer_gpus:
        launch = ["-m", "accelerate.commands.launch", f"--config_file={ASSETS / 'accelerate.yaml'}"]
        launch += ["--multi_gpu", f"--num_machines={hosts}"]
        launch += [f"--num_processes={roles.processes}", f"--main_process_port={ports.rendezvous}"]
        meeting = [f"--machine_rank={rank}", f"--main_process_ip={first}", "--same_network"]
    else:
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={roles.processes // hosts}"]
        launch += [f"--master-port={ports.rendezvous}"]
        meeting = [f"--nnodes={hosts}", f"--node-rank={rank}", f"--master-addr={first}"]
    return [*launch, *(meeting if hosts > 1 else ())]


def prepare_of(config: Config, model_path: str, folder: Path) -> Command | None:
    if config.model.weights != "random" or (Path(model_path) / "config.json").is_file():
        return None
    shape = ["shape"] if model_path == str(random_folder(config.model, weights=False)) else []
    return Command((sys.executable, "-m", "grpo_lab.worker.random_weights", str(folder), *shape))


def _trainer_env(
    config: Config, machine: Machine, folder: Path, roles: Roles, host: Host, ports: Ports
) -> dict[str, str]:
    gpus, processes = roles.trainer_gpus, roles.processes // len(roles.trainer)
    env = {**environment(gpus), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env[RUN_VARIABLE] = str(folder.resolve())
    env |= few_cores(machine, processes)
    if not gpus:
        env |= {**PATIENT, "OMP_NUM_THREADS": str(max(1, machine.cores // processes))}
        # For several processes accelerate says `cpu:0`, which torch.load cannot restore a checkpoint to.
        env["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if config.distributed.offload and config.distributed.kind == "fsdp2":
        # Read by accelerate before it knows the plan: gradients in the host's memory are reduced over gloo.
        env |= {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}
    env |= mode(config.vllm.mode).trainer_env(config, roles, host, ports, machine.cores)
    return env | _elsewhere(host) | {key: str(value) for key, value in config.vllm.env.items()}


def few_cores(machine: Machine, processes: int) -> dict[str, str]:
    """For libraries that would start a thread for each core that the system shows."""
    return {"OMP_NUM_THREADS": str(max(1, machine.cores // processes))} if machine.limited else {}


def _elsewhere(host: Host) -> dict[str, str]:
    """vLLM's sockets go to a folder that the conductor makes, on its own host."""
    return {} if host.here else {"VLLM_RPC_BASE_PATH": "/tmp"}
