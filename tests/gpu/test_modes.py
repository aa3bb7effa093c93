"""`pytest -m gpu`: the smallest real run of each mode on real GPUs, so that anyone with GPUs can repeat it.

Random weights of Qwen2.5-0.5B's shape, so nothing is downloaded. A test asks for as many GPUs as it needs and fails,
rather than being skipped, where there are fewer; choose with -k.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from grpo_lab.machine.gpus import read_machine
from grpo_lab.machine.nvml import opened
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import cli, running, wait_for_step

pytestmark = pytest.mark.gpu

SMALL = [
    "model=qwen2.5-0.5b",
    "model.weights=random",
    "grpo.max_steps=4",
    "grpo.generation_batch_size=32",
    "grpo.max_completion_length=64",
    "eval.enabled=false",
    "tracker=none",
    "vllm.check_sync_every=1",
]
TP = ["vllm.engine.disable_custom_all_reduce=true"]
"""Works on virtual machines too, where vLLM's own all-reduce crashes."""

MODES = {
    "off_1gpu": (1, ["gpus=1"]),
    "colocate_1gpu": (1, ["gpus=1", "vllm=colocate"]),
    "sleep_1gpu": (1, ["gpus=1", "vllm=colocate", "vllm.sleep=true"]),
    "lora_1gpu": (1, ["gpus=1", "vllm=colocate", "peft=lora"]),
    "qlora_1gpu": (1, ["gpus=1", "vllm=off", "peft=qlora"]),
    "colocate_2gpu_dp2": (2, ["gpus=2", "vllm=colocate", "vllm.dp=2"]),
    "colocate_2gpu_tp2": (2, ["gpus=2", "vllm=colocate", "vllm.tp=2", *TP]),
    "fsdp2_2gpu": (2, ["gpus=2", "vllm=colocate", "vllm.dp=2", "distributed=fsdp2"]),
    "zero2_2gpu": (2, ["gpus=2", "vllm=colocate", "vllm.dp=2", "distributed=zero2"]),
    "zero3_2gpu": (2, ["gpus=2", "vllm=colocate", "vllm.dp=2", "distributed=zero3"]),
    "server_2gpu": (2, ["gpus=2", "vllm=server"]),
    "server_2gpu_gloo": (2, ["gpus=2", "vllm=server", "vllm.weight_transfer=gloo"]),
    "server_4gpu_dp2": (4, ["gpus=4", "vllm=server", "vllm.dp=2"]),
    "server_4gpu_tp2": (4, ["gpus=4", "vllm=server", "vllm.tp=2", *TP]),
}


def need(gpus: int) -> None:
    have = len(read_machine().gpus)
    assert have >= gpus, f"needs {gpus} GPUs, this machine has {have}"


@pytest.mark.parametrize("mode", MODES)
def test_a_small_run(mode: str, tmp_path: Path) -> None:
    gpus, overrides = MODES[mode]
    need(gpus)
    ended = cli(*SMALL, *overrides, f"runs_dir={tmp_path}", "name=one", timeout_s=500)
    run = Run(tmp_path / "one")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = run.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    if "vllm=colocate" in overrides or "vllm=server" in overrides:
        assert all(row["sampling/sampling_logp_difference/mean"] < 0.05 for row in rows)
    assert store.read_json(run.result)["metrics"]["peak_memory_gib"]["trainer"] > 1


@pytest.mark.parametrize("layout", [["vllm=server", "vllm.dp=2"], ["vllm=server", "vllm.tp=2", *TP], ["vllm=colocate"]])
def test_a_small_bench(layout: list[str], tmp_path: Path) -> None:
    """Real data parallelism, and what only NVIDIA's driver can say."""
    gpus = 2 if "vllm=server" in layout else 1
    need(gpus)
    sizes = ["bench.prompts=16", "bench.num_generations=4", "bench.prompt_len=64", "bench.completion_len=64"]
    asked = ["model=qwen2.5-0.5b", "model.weights=random", "tracker=none", *sizes, *layout]
    ended = cli(*asked, f"runs_dir={tmp_path}", "name=one", module="grpo_lab.bench", timeout_s=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    metrics = store.read_json(Run(tmp_path / "one").result)["metrics"]
    assert metrics["engines"]["n"] == (2 if "vllm.dp=2" in layout else 1)
    assert len(metrics["power_w"]) == len(metrics["peak_memory_gib"]) == gpus
    assert min(metrics["power_w"].values()) > 50
    assert metrics["generated_tokens_per_s"]["median"] > 1000


def test_kill_9_of_the_conductor_empties_the_gpus(tmp_path: Path) -> None:
    """Server mode on two GPUs: 15 seconds after the conductor is gone no process is left on any GPU."""
    need(2)
    run = Run(tmp_path / "orphan")
    endless = [*SMALL, "grpo.max_steps=2000", "gpus=2", "vllm=server"]
    with running(*endless, f"runs_dir={tmp_path}", "name=orphan") as process:
        wait_for_step(run, 1)
        used = gpu_processes()
        process.kill()
    deadline = time.monotonic() + 15
    while gpu_processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert used
    assert not gpu_processes()


def gpu_processes() -> list[int]:
    """Of all cards."""
    nvml = opened()
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [process.pid for handle in handles for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
