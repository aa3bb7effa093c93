"""The plan of a run over several machines: who runs where, by which commands, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.nodes import Host
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import Plan, make_plan
from tests.planner.test_plan import ON_CPU, QWEN, asked, with_gpus

PORTS = Ports(20001, 20002, 20003, 20004)
HOSTS = (Host("a", "10.0.0.1", here=True), Host("b", "10.0.0.2"), Host("c", "10.0.0.3"), Host("d", "10.0.0.4"))
RECIPE = (*QWEN, "nodes=4", "vllm=server", "vllm.tp=4", "vllm.dp=2", "grpo.generation_batch_size=192")
"""The published layout of a 72B model: a server on one machine of eight GPUs, 24 trainer ranks on three others."""


def planned(gpus: int, *overrides: str) -> Plan:
    machine = replace(with_gpus(gpus) if gpus else ON_CPU, hosts=HOSTS)
    return make_plan(asked(*overrides), machine, folder=Path("runs/x"), ports=PORTS)


def ids(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


LAYOUTS: list[tuple[int, list[str], dict[str, Any]]] = [
    (
        8,
        list(RECIPE),
        {
            "server_hosts": ("a",),
            "server_gpus": ids(8),
            "trainer_hosts": ("b", "c", "d"),
            "trainer_gpus": ids(8),
            "processes": 24,
            "gpus": 32,
            "gpus_per_node": 8,
            "nodes": 4,
            "generating_devices": 8,
            "devices": 32,
        },
    ),
    (
        8,
        ["nodes=4", "vllm=server", "vllm.tp=4", "vllm.dp=4"],
        {"server_hosts": ("a", "b"), "server_gpus": ids(8), "trainer_hosts": ("c", "d"), "processes": 16, "gpus": 32},
    ),
    (
        8,
        ["nodes=2", "vllm=server", "vllm.tp=4"],
        {"server_gpus": ids(4), "trainer_gpus": ids(8), "gpus": 12, "gpus_per_node": 8},
    ),
    (
        8,
        ["nodes=3", "vllm=server", "trainer_gpus=8"],
        {"server_gpus": ids(1), "trainer_gpus": ids(4), "processes": 8, "gpus": 9, "gpus_per_node": 4},
    ),
    (
        8,
        ["nodes=2", "gpus=4", "vllm=server", "vllm.dp=4"],
        {"server_gpus": ids(4), "trainer_gpus": ids(4), "processes": 4, "gpus": 8},
    ),
    (
        4,
        ["nodes=2", "vllm=server", "vllm.url=http://10.0.0.9:8000"],
        {"server_hosts": (), "trainer_hosts": ("a", "b"), "processes": 8, "gpus": 8},
    ),
    (
        8,
        ["nodes=2", "vllm=colocate", "vllm.tp=2", "vllm.dp=8"],
        {"server_hosts": (), "trainer_hosts": ("a", "b"), "trainer_gpus": ids(8), "processes": 16, "gpus": 16},
    ),
    (8, ["nodes=4", "vllm=colocate", "vllm.dp=4"], {"trainer_gpus": ids(1), "processes": 4, "gpus": 4}),
    (8, ["nodes=4"], {"trainer_hosts": ("a", "b", "c", "d"), "processes": 32, "gpus": 32}),
    (0, ["nodes=3", "vllm=server"], {"server_hosts": ("a",), "trainer_hosts": ("b", "c"), "processes": 2, "gpus": 0}),
    (0, ["nodes=3", "vllm=server"], {"devices": 3, "generating_devices": 1}),
]


@pytest.mark.parametrize(("gpus", "overrides", "expected"), LAYOUTS, ids=str)
def test_layout(gpus: int, overrides: list[str], expected: dict[str, Any]) -> None:
    plan = planned(gpus, *QWEN, *overrides)
    assert {key: plan.batch.processes if key == "processes" else getattr(plan, key) for key in expected} == expected


def test_every_layout_trains_on_the_same_batch() -> None:
    layouts = (["nodes=1"], ["nodes=4"], ["nodes=2", "vllm=server"], ["nodes=4", "vllm=colocate", "vllm.dp=8"])
    batches = [planned(8, *QWEN, *layout).batch for layout in layouts]
    assert {(batch.completions, batch.prompts) for batch in batches} == {(64, 8)}
    assert all(batch.processes * batch.per_device * batch.accumulation == 64 for batch in batches)


REFUSED: list[tuple[int, list[str], str]] = [
    (8, ["nodes=0"], "nodes=0: must be at least 1"),
    (8, ["hosts=[a,b]"], "nodes=1 takes this machine alone; nodes=2"),
    (8, ["nodes=5"], "nodes=5: the job has 4 (a, b, c, d)"),
    (8, ["nodes=2", "gpus=[0,1]"], "Slurm assigns the ids; give a number"),
    (8, ["nodes=2", "gpus=9"], "this machine has 8 GPUs"),
    (2, ["nodes=4", "vllm=server", "vllm.tp=4"], "an engine must fit on one machine, and each has 2 GPUs"),
    (
        8,
        ["nodes=2", "vllm=server", "vllm.tp=4", "vllm.dp=4"],
        "take 2 machines of 8 GPUs, the trainer one more",
    ),
    (
        8,
        ["nodes=4", "vllm=server", "vllm.tp=4", "vllm.dp=3"],
        "evenly over 2 machines; next ones: 2 or 4",
    ),
    (
        8,
        ["nodes=3", "vllm=server", "trainer_gpus=9"],
        "evenly over 2 machines; next ones: 8 or 10",
    ),
    (8, ["nodes=3", "vllm=server", "trainer_gpus=32"], "the trainer has 2 machines of 8 GPUs"),
    (8, ["nodes=4", "vllm=server"], "is not a multiple of 24 processes; next ones: 48 or 72"),
    (8, ["nodes=4", "vllm=colocate", "vllm.dp=2"], "vllm.dp=2 does not spread evenly over 4 machines; next ones: 4"),
    (8, ["nodes=2", "vllm=colocate", "vllm.tp=2", "vllm.dp=16"], "need 16 GPUs on each of 2 machines, which have 8"),
    (8, ["nodes=2", "vllm=colocate", "vllm.dp=4", "trainer_gpus=2"], "tp * dp = 4 processes"),
    (8, ["nodes=2", "vllm=server", "vllm.engine.data_parallel_size_local=1"], "set vllm.dp= and nodes="),
]


@pytest.mark.parametrize(("gpus", "overrides", "reason"), REFUSED, ids=str)
def test_refused_with_the_reason(gpus: int, overrides: list[str], reason: str) -> None:
    with pytest.raises(RequestError) as refusal:
        planned(gpus, *QWEN, *overrides)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(("nodes", "completions", "hint"), [(2, 24, "or trainer_gpus=12"), (3, 40, "24 or 48")])
def test_a_smaller_trainer_that_is_named_spreads_evenly(nodes: int, completions: int, hint: str) -> None:
    with pytest.raises(RequestError) as refusal:
        planned(8, *QWEN, f"nodes={nodes}", f"grpo.generation_batch_size={completions}")
    assert str(refusal.value).endswith(hint)


def test_the_server_is_reached_by_its_address_and_the_trainer_by_slurm() -> None:
    plan = planned(8, *RECIPE)
    assert plan.server is not None
    server = " ".join(plan.server.argv)
    assert "--host 10.0.0.1 --port 20001" in server
    assert "srun" not in server
    assert "--data-parallel-size-local" not in server
    assert plan.server.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert plan.trl["vllm_server_base_url"] == plan.server.url == "http://10.0.0.1:20001"
    assert plan.engines == ()
    for rank, (command, host) in enumerate(zip(plan.trainer, HOSTS[1:], strict=True)):
        argv = " ".join(command.argv)
        assert command.host == host.name
        assert command.argv[0] == "srun"
        assert f"--nodelist={host.name} " in argv
        assert "--num_machines=3 --num_processes=24 --main_process_port=20003" in argv
        assert f"--machine_rank={rank} --main_process_ip=10.0.0.2" in argv
        # TRL offers this address to the server's workers; only the one of rank 0 is ever asked for.
        assert command.env["VLLM_HOST_IP"] == host.address
        assert "10.0.0.1" in command.env["NO_PROXY"].split(",")


def test_a_server_over_two_machines_has_one_front_end() -> None:
    plan = planned(8, *QWEN, "nodes=3", "vllm=server", "vllm.tp=2", "vllm.dp=8", "grpo.generation_batch_size=64")
    assert plan.server is not None
    (further,) = plan.engines
    meeting = "--data-parallel-size 8 .* --data-parallel-size-local 4 --data-parallel-address 10.0.0.1"
    for argv in (plan.server.argv, further.argv):
        assert re.search(f"{meeting} --data-parallel-rpc-port 20004", " ".join(argv))
    assert "--headless" not in plan.server.argv
    assert " ".join(further.argv).endswith("--headless --data-parallel-start-rank 4")
    assert further.argv[0] == "srun"
    assert further.host == "b"


def test_ranks_without_a_slurm_job_share_a_machine_by_name() -> None:
    here = Host("127.0.0.1", "127.0.0.1", here=True)
    plan = make_plan(asked("nodes=2"), replace(ON_CPU, hosts=(here, here)), folder=Path("runs/x"), ports=PORTS)
    first, second = (" ".join(command.argv) for command in plan.trainer)
    assert "srun" not in first + second
    assert "--nproc-per-node=1 --master-port=20003 --nnodes=2 --node-rank=0 --master-addr=127.0.0.1" in first
    assert "--node-rank=1" in second


def test_one_machine_stays_on_the_loopback_and_needs_no_slurm() -> None:
    plan = planned(4, *QWEN, "vllm=server", "vllm.dp=2")  # on one machine, though the job has four
    commands = [" ".join(command.argv) for _, command in plan.commands()]
    assert [role for role, _ in plan.commands()] == ["server", "trainer"]
    assert "--host 127.0.0.1" in commands[0]
    assert not any("srun" in command or "10.0.0" in command for command in commands)
    assert plan.notes == ()


def test_what_stays_idle_and_what_is_open_is_said() -> None:
    notes = "\n".join(planned(8, *QWEN, "nodes=3", "vllm=server", "vllm.tp=4", "trainer_gpus=8").notes)
    assert "server on a, 4 of 8 GPUs stay idle on it" in notes
    assert "trainer on b, c, 4 of 8 GPUs stay idle on each" in notes
    assert "\nd stay idle" in notes
    assert "http://10.0.0.1:20001, its administrative endpoints behind a key" in notes


def test_a_job_that_does_not_exist_yet_is_planned_with_placeholders() -> None:
    plan = make_plan(asked(*RECIPE), with_gpus(8), folder=Path("runs/x"), ports=PORTS)
    assert (plan.server_hosts, plan.trainer_hosts) == (("node0",), ("node1", "node2", "node3"))
    assert plan.trl["vllm_server_base_url"] == "http://node0:20001"
