"""What is left open is chosen for the machine: it fits, explicit values stay, the run is the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from grpo_lab.config.compose import identity
from grpo_lab.machine.clusters import cluster
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.train import Plan, make_plan
from grpo_lab.predictor.check import check
from grpo_lab.predictor.filling import Filled, filled
from grpo_lab.store import folder as store
from grpo_lab.store import records
from tests.planner.test_plan import ON_CPU, PORTS, asked

FLAGSHIP = ("vllm=server", "vllm.tp=2", "vllm.dp=2", "trainer_gpus=4", "model=qwen2.5-7b", "data=gsm8k")


def on(hardware: str) -> Machine:
    return cluster(hardware, Machine(gpus=(), cores=8, versions={})).as_machine()


def planned(hardware: str, *overrides: str) -> tuple[Filled, Plan]:
    """What is chosen and planned, after the memory check."""
    whole, machine = filled(asked(*overrides), on(hardware)), on(hardware)
    plan = make_plan(whole.config, machine, folder=Path("runs/x"), ports=PORTS)
    check(whole.config, plan, machine)
    return whole, plan


@pytest.mark.parametrize("hardware", ["a100-80-8", "h100-8", "h200-8"])
def test_the_flagship_is_sharded_where_ddp_does_not_fit(hardware: str) -> None:
    whole, plan = planned(hardware, *FLAGSHIP)
    assert whole.chosen["distributed"] == "fsdp2"
    assert plan.trl["fsdp"] == "full_shard"
    assert "GiB a trainer's GPU, ddp 177.5" in whole.notes[0]


def test_ddp_stays_where_it_fits_and_what_is_asked_always() -> None:
    assert planned("h200-8", *FLAGSHIP[:-2], "model=qwen2.5-0.5b", "data=gsm8k")[0].config.distributed.kind == "ddp"
    asked_for = filled(asked(*FLAGSHIP, "distributed=ddp"), on("h100-8"))
    assert (asked_for.config.distributed.kind, asked_for.notes) == ("ddp", ())
    assert filled(asked(), ON_CPU).config.distributed.kind == "ddp"


def test_a_run_is_the_same_run_whatever_was_chosen_for_it() -> None:
    assert identity(asked(*FLAGSHIP)) == identity(asked(*FLAGSHIP, "distributed=ddp"))
    assert identity(asked(*FLAGSHIP)) != identity(asked(*FLAGSHIP, "distributed=zero3"))


def test_a_worker_reads_a_plan_with_its_choices(tmp_path: Path) -> None:
    whole, plan = planned("h100-8", *FLAGSHIP)
    file = tmp_path / "plan.json"
    store.save_plan(file, replace(plan, chosen=whole.chosen, why=whole.why), devices=8, generating_devices=4)
    assert records.must_read(file, Plan).chosen == {"distributed": "fsdp2"}
