"""Plan of an evaluation: the generator, the sampling, completions at a time, and the folder of the answers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lab.config import model as checkpoint
from grpo_lab.config.errors import RequestError
from grpo_lab.config.jobs import EvaluateConfig
from grpo_lab.config.redaction import redact
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.machine.visible import environment
from grpo_lab.planner.checks.abilities import check_vllm
from grpo_lab.planner.checks.request import check_request
from grpo_lab.planner.checks.secrets import check_secrets
from grpo_lab.planner.checks.shapes import check_shape
from grpo_lab.planner.checks.upstream import check_upstream
from grpo_lab.planner.commands import RUN_VARIABLE, engine_options, few_cores, prepare_of
from grpo_lab.planner.layout import allowed_gpus, one_slice_each
from grpo_lab.planner.modes import COLOCATE, OFF, SERVER, mode
from grpo_lab.planner.parts import Command
from grpo_lab.server.command import PATIENT, QUIET, cpu_env

BATCH = {"transformers": 64, "vllm": 4096}
AUTO = "auto"
"""vllm.mode where nobody asked for one: vLLM where it works."""


@dataclass(frozen=True)
class Policy:
    """Whose answers are judged."""

    label: str
    """`before`, `step N`, or `model` for one that no run trained."""
    path: str
    """Folder or hub id of a whole model."""
    adapter: str | None = None
    """Folder of a LoRA adapter on it."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Written to plan.json for the answering process, which gets the data and the model's options from config.yaml."""

    backend: str
    """`vllm` or `transformers`."""
    because: str
    """Reason for transformers instead of vLLM, for the user; empty with vLLM."""
    policy: str
    model_path: str
    adapter: str | None
    dtype: str
    gpus: tuple[str, ...]
    k: tuple[int, ...]
    samples: int
    problems: int
    batch: int
    """Problems at a time."""
    seed: int
    sampling: Mapping[str, Any]
    """`max_tokens`, `temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty`, `others` (of the backend)."""
    chat_template: Mapping[str, Any]
    """Further arguments of the chat template."""
    context: int | None
    """Most tokens of prompt and completion together; None where unknown."""
    engine: Mapping[str, Any]
    """vLLM's engine arguments."""

    @property
    def generator(self) -> str:
        where = f"GPU {','.join(self.gpus)}" if self.gpus else "CPU"
        if self.backend == "vllm":
            return f"vLLM, tp={self.engine['tensor_parallel_size']}, {where}"
        return f"transformers, {where} ({self.because})"


def make_plan(config: Config, policy: Policy, machine: Machine) -> EvaluationPlan:
    """Raises RequestError for what cannot work."""
    check_request(config)
    check_secrets(config)
    _check_engines(config.vllm.dp)
    asked = config.evaluate
    samples = _samples(asked)
    gpus = allowed_gpus(dataclasses.replace(config, nodes=1, hosts=None), machine)
    config, because = _settled(config, machine, on_gpu=bool(gpus))
    backend = "transformers" if because else "vllm"
    if backend == "vllm":
        if gpus and len(gpus) < config.vllm.tp:
            raise RequestError(f"vllm.tp={config.vllm.tp}: {len(gpus)} GPUs may be used")
        gpus = one_slice_each(gpus[: config.vllm.tp])
    shape, dtype = checkpoint.shape(config.model), _dtype(config, on_gpu=bool(gpus))
    return EvaluationPlan(
        backend=backend,
        because=because,
        policy=policy.label,
        model_path=policy.path,
        adapter=policy.adapter,
        dtype=dtype,
        gpus=gpus,
        k=tuple(sorted(set(asked.k))),
        samples=samples,
        problems=asked.problems,
        batch=max(1, (asked.batch_size or BATCH[backend]) // samples),
        seed=asked.seed,
        sampling=_sampling(config, samples),
        chat_template=config.grpo.get("chat_template_kwargs") or {},
        context=config.vllm.max_model_len or (shape.context if shape else None),
        engine=_engine(config, dtype, on_gpu=bool(gpus)) if backend == "vllm" else {},
    )


def _check_engines(dp: int) -> None:
    if dp > 1:
        raise RequestError(
            f"vllm.dp={dp}: an evaluation has one engine, because vLLM has no data parallelism inside one process;"
            " vllm.dp=1, or vllm.tp= for more GPUs"
        )


def _samples(asked: EvaluateConfig) -> int:
    """Completions a problem. Raises RequestError where they do not suffice for every k."""
    if not asked.k or min(asked.k) < 1:
        raise RequestError(f"evaluate.k={asked.k}: one number or more, each at least 1, as in evaluate.k=1,4")
    samples = max(asked.k) if asked.samples is None else asked.samples
    if samples < max(asked.k):
        raise RequestError(f"evaluate.k={max(asked.k)} is more than evaluate.samples={samples}")
    return samples


def _sampling(config: Config, samples: int) -> dict[str, Any]:
    """As in training, but for the temperature if another one was asked for. The defaults are GRPOConfig's."""
    grpo, asked = config.grpo, config.evaluate.temperature
    temperature = float(grpo.get("temperature", 1.0) if asked is None else asked)
    if temperature == 0 and samples > 1:
        raise RequestError("evaluate.temperature=0: this is greedy, which takes evaluate.samples=1")
    return {
        "max_tokens": grpo.get("max_completion_length") or 512,
        "temperature": temperature,
        "top_p": grpo.get("top_p", 1.0),
        "top_k": grpo.get("top_k", 0),
        "min_p": grpo.get("min_p") or 0.0,
        "repetition_penalty": grpo.get("repetition_penalty", 1.0),
        "others": grpo.get("generation_kwargs") or {},
    }


def _settled(config: Config, machine: Machine, *, on_gpu: bool) -> tuple[Config, str]:
    """The config with vllm.mode `colocate`, an engine in the answering process, or `off`, and why it is off.

    What concerns training alone is dropped.
    """
    wanted = config.vllm.mode
    if wanted == AUTO or mode(wanted).served:
        config = _with_vllm(config, mode=COLOCATE.name)
    config = _with_vllm(config, sleep=False, url=None, check_sync_every=0, dp=1)
    off = _with_vllm(config, mode=OFF.name, tp=1)
    if wanted == AUTO:
        try:
            check_vllm(config, machine, on_gpu=on_gpu)
        except RequestError as error:
            reason = str(error).removeprefix("vllm=colocate: ").partition(";")[0]
            return _checked(off, machine, on_gpu=on_gpu), reason
    elif not mode(wanted).engines:
        return _checked(off, machine, on_gpu=on_gpu), f"vllm={wanted}"
    return _checked(config, machine, on_gpu=on_gpu), ""


def _with_vllm(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, vllm=dataclasses.replace(config.vllm, **changes))


def _checked(config: Config, machine: Machine, *, on_gpu: bool) -> Config:
    check_upstream(config, machine)
    check_vllm(config, machine, on_gpu=on_gpu)
    check_shape(config, checkpoint.shape(config.model), on_gpu=on_gpu)
    return config


def _dtype(config: Config, *, on_gpu: bool) -> str:
    """Type in which the trainer computes: on GPUs bf16 unless grpo.bf16=false."""
    return "bfloat16" if on_gpu and config.grpo.get("bf16", True) else config.model.dtype


def _engine(config: Config, dtype: str, *, on_gpu: bool) -> dict[str, Any]:
    options = engine_options(config, on_gpu=on_gpu)
    share = config.vllm.gpu_memory_utilization or SERVER.memory_share
    return {
        "dtype": dtype,
        "tensor_parallel_size": config.vllm.tp,
        **({"gpu_memory_utilization": share} if on_gpu else {}),
        **options,
    }


def name_of(config: Config, plan: EvaluationPlan) -> str:
    """`<data>-<hash>`: the same for the same problems, weights and sampling. Which k are reported is left out, because
    it changes no completion; so is where the run lies."""
    decided = {key: value for key, value in dataclasses.asdict(plan).items() if key not in ("k", "because", "gpus")}
    if plan.policy.startswith("step"):
        decided |= {"model_path": None, "adapter": plan.adapter is not None}
    asked = redact({**decided, "data": config.data, "model": dataclasses.asdict(config.model)})
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{str(config.data.get('_target_', '')).rpartition('.')[2]}-{digest}"


def commands_of(config: Config, plan: EvaluationPlan, machine: Machine, folder: Path) -> list[Command]:
    """What to run, in order: random weights where the model needs them and they are not there yet, then the answers."""
    prepare = prepare_of(config, checkpoint.location(config.model), folder)
    env = {**environment(plan.gpus), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env[RUN_VARIABLE] = str(folder.resolve())
    env |= few_cores(machine, 1)
    if not plan.gpus:
        env |= {**PATIENT, "OMP_NUM_THREADS": str(machine.cores)}
    if plan.backend == "vllm":
        env |= QUIET | ({} if plan.gpus else _cpu_env(plan, machine))
    env |= {key: str(value) for key, value in config.vllm.env.items()}
    answer = Command((sys.executable, "-m", "grpo_lab.worker.evaluate", str(folder)), env)
    return [command for command in (prepare, answer) if command]


def _cpu_env(plan: EvaluationPlan, machine: Machine) -> dict[str, str]:
    """One worker runs in the answering process itself, which halves the start-up."""
    workers = plan.engine["tensor_parallel_size"]
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if workers == 1 else {}
    return alone | cpu_env(workers, cores=machine.cores, engine=plan.engine)
