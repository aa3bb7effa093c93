"""The plan as a table: what a request on a machine becomes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Gpu, Machine
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import Plan, make_plan

VERSIONS = {
    "grpo-lab": "0.1.0",
    "trl": "1.16.0",
    "vllm": "0.26.0",
    "torch": "2.11.0",
    "deepspeed": "0.18.0",
    "bitsandbytes": "0.48.0",
}
ON_CPU = Machine(cores=2, versions={**VERSIONS, "vllm": "0.31.0+cpu"})
PORTS = Ports(20001, 20002, 20003)
QWEN = ("model=qwen2.5-7b", "data=gsm8k")


def with_gpus(count: int) -> Machine:
    gpus = tuple(Gpu(str(number), "NVIDIA H200", 141.0) for number in range(count))
    return Machine(gpus=gpus, cores=16, versions=VERSIONS)


def asked(*overrides: str) -> Config:
    configuration.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return configuration.from_hydra(compose("config", list(overrides)))


def planned(machine: Machine, *overrides: str) -> Plan:
    return make_plan(asked(*overrides), machine, folder=Path("runs/x"), ports=PORTS)


LAYOUTS: list[tuple[int, list[str], dict[str, Any]]] = [
    (0, [], {"trainer_gpus": (), "processes": 1}),
    (1, ["vllm=colocate"], {"trainer_gpus": ("0",), "server_gpus": (), "processes": 1, "generating_devices": 1}),
    (4, [], {"trainer_gpus": ("0", "1", "2", "3"), "processes": 4, "devices": 4}),
    (4, ["trainer_gpus=2"], {"trainer_gpus": ("0", "1"), "processes": 2, "devices": 2}),
    (4, ["vllm=colocate", "vllm.tp=2", "vllm.dp=2"], {"trainer_gpus": ("0", "1", "2", "3"), "processes": 4}),
    (4, ["vllm=colocate", "vllm.tp=2"], {"trainer_gpus": ("0", "1"), "processes": 2, "devices": 2}),
    (2, ["vllm=server"], {"trainer_gpus": ("0",), "server_gpus": ("1",), "generating_devices": 1, "devices": 2}),
    (4, ["vllm=server", "vllm.dp=2"], {"trainer_gpus": ("0", "1"), "server_gpus": ("2", "3"), "generating_devices": 2}),
    (
        8,
        ["vllm=server", "vllm.tp=2", "vllm.dp=2", "trainer_gpus=4"],
        {"processes": 4, "server_gpus": ("4", "5", "6", "7")},
    ),
    (4, ["vllm=server", "gpus=[3,1]"], {"trainer_gpus": ("3",), "server_gpus": ("1",)}),
    (4, ["vllm=server", "vllm.url=http://10.0.0.1:8000"], {"trainer_gpus": ("0", "1", "2", "3"), "server_gpus": ()}),
]


@pytest.mark.parametrize(("count", "overrides", "expected"), LAYOUTS, ids=str)
def test_layout(count: int, overrides: list[str], expected: dict[str, Any]) -> None:
    machine = with_gpus(count) if count else ON_CPU
    plan = planned(machine, *QWEN, *overrides)
    got = {key: plan.batch.processes if key == "processes" else getattr(plan, key) for key in expected}
    assert got == expected


@pytest.mark.parametrize(
    "layout", [[], ["trainer_gpus=2"], ["vllm=colocate", "vllm.tp=2"], ["vllm=server", "vllm.dp=2"]]
)
@pytest.mark.parametrize("limit", [1, 3, 8, 64])
def test_every_layout_trains_on_the_same_batch(layout: list[str], limit: int) -> None:
    batch = planned(with_gpus(4), *QWEN, *layout, f"grpo.per_device_train_batch_size={limit}").batch
    assert batch.processes * batch.per_device * batch.accumulation == batch.completions == 64
    assert batch.prompts * batch.generations == 64
    assert batch.per_device <= limit


REFUSED: list[tuple[Machine, list[str], str]] = [
    (with_gpus(4), ["vllm=colocate", "vllm.tp=3"], "28 attention heads"),
    (with_gpus(16), ["vllm=colocate", "vllm.tp=14"], "4 kv heads"),
    (with_gpus(1), ["vllm=colocate", "vllm.dp=2"], "need 2 GPUs, there are 1"),
    (with_gpus(4), ["vllm=colocate", "vllm.tp=2", "trainer_gpus=3"], "tp * dp = 2 processes"),
    (with_gpus(1), ["vllm=server"], "must not share one"),
    (with_gpus(4), ["vllm=server", "vllm.dp=2", "trainer_gpus=3"], "must not share one"),
    (with_gpus(2), ["gpus=3"], "this machine has 2 GPUs"),
    (with_gpus(2), ["gpus=[0,0]"], "named once"),
    (with_gpus(2), ["trainer_gpus=3"], "there are 2 GPUs"),
    (with_gpus(2), ["vllm.dp=2"], "need vllm=colocate or vllm=server"),
    (with_gpus(2), ["vllm=server", "vllm.max_model_len=100"], "need 513 tokens"),
    (with_gpus(2), ["vllm=server", "vllm.max_model_len=600", "data.max_prompt_tokens=200"], "need 712 tokens"),
    (ON_CPU, ["data.max_prompt_tokens=many"], "data.max_prompt_tokens='many'"),
    (ON_CPU, ["data.max_prompt_tokens=0"], "data.max_prompt_tokens=0"),
    (with_gpus(2), ["vllm=server", "vllm.max_model_len=999999"], "context of 131072"),
    (with_gpus(2), ["vllm=server", "vllm.engine.tensor_paralel_size=2"], "did you mean 'tensor_parallel_size'?"),
    (with_gpus(2), ["vllm=server", "vllm.engine.seed=2"], "set seed"),
    (with_gpus(2), ["vllm=server", "grpo.vllm_mode=colocate"], "set vllm=off|colocate|server"),
    (with_gpus(2), ["vllm=server", "vllm.sleep=true"], "sleep is for vllm=colocate"),
    (ON_CPU, ["vllm=colocate", "vllm.sleep=true"], "cannot sleep on a CPU"),
    (ON_CPU, ["vllm=server", "vllm.weight_transfer=nccl"], "NCCL needs GPUs"),
    (replace(ON_CPU, versions={"vllm": "0.31.0+cpu"}), ["vllm=server"], "pip install -e ."),
    (ON_CPU, ["distributed=zero3"], "needs GPUs"),
    (with_gpus(1), ["distributed=fsdp2"], "one process"),
    (replace(with_gpus(2), versions={"trl": "1.16.0"}), ["distributed=zero2"], "deepspeed is not installed"),
    (replace(with_gpus(2), versions={"trl": "1.16.0"}), ["vllm=server"], "vLLM is not installed"),
    (replace(with_gpus(2), versions={"vllm": "0.32.1"}), ["vllm=server"], "TRL supports vLLM 0.22 to 0.31"),
    (replace(with_gpus(2), versions={"vllm": "0.31.0+cpu"}), ["vllm=server"], "is the CPU build"),
    (replace(ON_CPU, versions={"vllm": "0.31.0"}), ["vllm=server"], "no GPU here"),
    (with_gpus(3), [], "not a multiple of 3 processes; next ones: 63 or 66, or trainer_gpus=2"),
    (with_gpus(1), ["vllm=colocate", "grpo.vllm_importance_sampling_correction=false"], "vllm.check_sync_every=0"),
    (with_gpus(1), ["peft=lora", "peft.options.rank=4"], "LoraConfig has no such option"),
    (with_gpus(1), ["model.weights=randm"], "did you mean 'random'?"),
]


@pytest.mark.parametrize(
    ("machine", "overrides", "reason"), REFUSED, ids=lambda value: str(value) if isinstance(value, list) else ""
)
def test_refused_with_the_reason(machine: Machine, overrides: list[str], reason: str) -> None:
    with pytest.raises(RequestError) as refusal:
        planned(machine, *QWEN, *overrides)
    assert reason in str(refusal.value)


def test_the_server_runs_as_planned() -> None:
    server = planned(
        with_gpus(8), *QWEN, "vllm=server", "vllm.tp=2", "vllm.dp=2", "seed=7", "vllm.engine.block_size=32"
    ).server
    assert server is not None
    argv = " ".join(server.argv)
    for flag in (
        "--tensor-parallel-size 2",
        "--data-parallel-size 2",
        '--weight-transfer-config {"backend":"nccl"}',
        "--logprobs-mode processed_logprobs",
        "--max-logprobs -1",
        "--seed 7",
        "--host 127.0.0.1",
        "--port 20001",
        "--gpu-memory-utilization 0.9",
        "--block-size 32",
    ):
        assert flag in argv
    assert "--enable-scale-out" not in argv  # an option of vLLM 0.30 and later
    assert server.env["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_a_server_of_somebody_else_is_reached_without_a_proxy() -> None:
    trainer = planned(with_gpus(1), *QWEN, "vllm=server", "vllm.url=http://judge.intern:8000").trainer[0]
    assert trainer.env["NO_PROXY"] == trainer.env["no_proxy"] == "127.0.0.1,localhost,judge.intern"


def test_many_processes_start_through_a_launcher() -> None:
    on_gpus = planned(with_gpus(2), *QWEN, "vllm=colocate", "vllm.dp=2").trainer[0]
    assert "accelerate.commands.launch" in on_gpus.argv
    assert "--num_processes=2" in on_gpus.argv
    assert "--main_process_port=20003" in on_gpus.argv
    assert "torch.distributed.run" in planned(ON_CPU, "vllm=colocate", "vllm.dp=2").trainer[0].argv


def test_a_process_alone_with_its_vllm_has_a_port_of_its_own() -> None:
    """Two such runs that start together would both take TRL's 29500."""
    (alone,) = planned(with_gpus(1), *QWEN, "vllm=colocate", "model.dtype=bfloat16").trainer
    assert alone.env["MASTER_PORT"] == "20003"
    assert "MASTER_PORT" not in planned(with_gpus(2), *QWEN, "vllm=colocate", "vllm.dp=2").trainer[0].env


def test_trl_gets_what_the_user_asked_and_the_plan_decided() -> None:
    trl = planned(with_gpus(2), *QWEN, "vllm=colocate", "vllm.sleep=true", "grpo.epsilon=0.3", "seed=5").trl
    assert trl["epsilon"] == 0.3
    assert trl["vllm_enable_sleep_mode"] is True
    assert trl["vllm_gpu_memory_utilization"] == 0.3
    assert trl["seed"] == 5
    assert "generation_batch_size" not in trl


def test_every_shipped_choice_composes_and_plans() -> None:
    for group in ("rewards", "peft", "tracker"):
        for file in sorted((CONF / group).glob("*.yaml")):
            choice = f"[{file.stem}]" if group == "rewards" else file.stem
            assert planned(with_gpus(8), f"{group}={choice}").batch.completions > 0
    for mode in ("off", "colocate", "server"):
        assert planned(with_gpus(8), "model=qwen2.5-7b", f"vllm={mode}", "gpus=2").mode == mode
    for kind in ("ddp", "fsdp2", "zero2", "zero3"):
        assert planned(with_gpus(8), *QWEN, f"distributed={kind}").batch.processes == 8
