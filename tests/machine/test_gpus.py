"""Which GPUs a run sees: CUDA_VISIBLE_DEVICES as CUDA reads it, and drivers that do not answer. NVML is pretended."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.machine import driver
from grpo_lab.machine.gpus import gpu_memory_gib, read_machine
from grpo_lab.planner.train import Plan
from tests.conftest import ROOT, SHORT
from tests.planner.test_plan import VERSIONS, planned

MIB = 2**20
UUIDS = [f"GPU-0000000{number}-aaaa-bbbb-cccc-ddddeeeeffff" for number in range(4)]
SLICES = [f"MIG-1111111{number}-aaaa-bbbb-cccc-ddddeeeeffff" for number in range(2)]
LOST, UNREADABLE = 15, 3

Pretend = Callable[..., None]


def card(number: int, **changes: Any) -> dict[str, Any]:
    return {"uuid": UUIDS[number], "name": "NVIDIA H200", "memory": 143771 * MIB, **changes}


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Makes NVML describe these cards, and sets CUDA_VISIBLE_DEVICES."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "fake_nvml"), str(ROOT)]))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "nvml.json"))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)

    def describe(visible: str | None = None, cards: list[dict[str, Any]] | None = None, init: object = None) -> None:
        every = [card(number) for number in range(4)] if cards is None else cards
        (tmp_path / "nvml.json").write_text(json.dumps({"init": init, "cards": every}))
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return describe


def plan_here(*overrides: str) -> Plan:
    return planned(dataclasses.replace(read_machine(), versions=VERSIONS), *overrides)


VISIBLE = {
    "0,1": ["0", "1"],
    "2,0": ["2", "0"],
    " 1 , 03": ["1", "3"],
    UUIDS[1]: [UUIDS[1]],
    "GPU-00000001": [UUIDS[1]],
    f"{UUIDS[3].replace('a', 'A')},GPU-00000000": [UUIDS[3], UUIDS[0]],
    "": [],
    "-1": [],
    "NoDevFiles": [],
    "1,-1,0": ["1"],
    "1,,0": ["1"],
    "0,9,1": ["0"],
    "9,0": [],
    "GPU-": [],
    "GPU-0000000": [],
    f"{UUIDS[0]},GPU-dead,{UUIDS[1]}": [UUIDS[0]],
    f"0,{UUIDS[1]}": ["0"],
    f"{UUIDS[0]},1": [UUIDS[0]],
    SLICES[0]: [],
}


@pytest.mark.parametrize("visible", VISIBLE)
def test_visible_devices_as_cuda_reads_them(visible: str, pretend: Pretend) -> None:
    pretend(visible)
    machine = read_machine()
    assert [gpu.id for gpu in machine.gpus] == VISIBLE[visible]
    assert {(gpu.name, gpu.memory_gib) for gpu in machine.gpus} <= {("NVIDIA H200", 140.4)}


def test_all_are_visible_by_default(pretend: Pretend) -> None:
    pretend()
    assert [gpu.id for gpu in read_machine().gpus] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("visible", ["0,9,1", "9", "GPU-dead", SLICES[0]])
def test_an_entry_that_hides_gpus_by_mistake_is_noted(visible: str, pretend: Pretend) -> None:
    pretend(visible)
    (note,) = read_machine().notes
    assert "is no GPU here; it hides all that follows" in note
    assert note in plan_here().notes


@pytest.mark.parametrize("visible", ["-1", "", "NoDevFiles", "0,-1", "none"])
def test_usual_ways_to_say_none_need_no_note(visible: str, pretend: Pretend) -> None:
    pretend(visible)
    assert read_machine().notes == ()


@pytest.mark.parametrize("visible", ["0,0", "1,0,1", f"{UUIDS[0]},{UUIDS[0]}", f"{UUIDS[0]},GPU-00000000"])
def test_a_card_named_twice_is_refused(visible: str, pretend: Pretend) -> None:
    pretend(visible)
    with pytest.raises(RequestError, match="twice, and CUDA then shows no GPU; name each once"):
        read_machine()


def test_children_get_ids_that_cuda_takes(pretend: Pretend) -> None:
    pretend(f"{UUIDS[2]},{UUIDS[0]},{UUIDS[3]}")
    plan = plan_here("vllm=server", "model=qwen2.5-1.5b", "trainer_gpus=1", "vllm.tp=2")
    assert plan.server is not None
    assert plan.trainer[0].env["CUDA_VISIBLE_DEVICES"] == UUIDS[2]
    assert plan.server.env["CUDA_VISIBLE_DEVICES"] == f"{UUIDS[0]},{UUIDS[3]}"
    assert plan.trainer[0].env["CUDA_DEVICE_ORDER"] == plan.server.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("visible", "wanted", "ids"),
    [(None, "[2,1]", "2,1"), (None, "[GPU-00000003]", "3"), ("GPU-00000001,GPU-00000003", f"[{UUIDS[3]}]", UUIDS[3])],
)
def test_gpus_chosen_by_index_or_uuid(visible: str | None, wanted: str, ids: str, pretend: Pretend) -> None:
    pretend(visible)
    plan = plan_here(f"gpus={wanted}")
    assert plan.trainer[0].env["CUDA_VISIBLE_DEVICES"] == ids


def test_a_gpu_that_is_not_visible_cannot_be_chosen(pretend: Pretend) -> None:
    pretend("0,1")
    for wanted in ("[3]", "[GPU-00000003]", "[GPU-0]"):
        with pytest.raises(RequestError, match="this machine has 0, 1, each to be named once"):
            plan_here(f"gpus={wanted}")


def cut() -> list[dict[str, Any]]:
    parts = [{"uuid": uuid, "name": "NVIDIA H200 MIG 3g.71gb", "memory": 71000 * MIB} for uuid in SLICES]
    return [card(0), card(1, mig=parts)]


@pytest.mark.parametrize(
    ("visible", "ids"),
    [(None, ["0", *SLICES]), (SLICES[1], [SLICES[1]]), ("MIG-11111110", [SLICES[0]]), ("1", SLICES), ("0", ["0"])],
)
def test_mig_devices(visible: str | None, ids: list[str], pretend: Pretend) -> None:
    pretend(visible, cut())
    gpus = read_machine().gpus
    assert [gpu.id for gpu in gpus] == ids
    assert [gpu.peak_flops is None for gpu in gpus] == [gpu.id in SLICES for gpu in gpus]


def test_one_mig_device_for_each_part_of_a_run(pretend: Pretend) -> None:
    pretend("1", cut())
    with pytest.raises(RequestError, match=r"2 MIG devices .* gpus=1"):
        plan_here()
    plan = plan_here("vllm=server", "trainer_gpus=1")
    assert (plan.trainer_gpus, plan.server_gpus) == ((SLICES[0],), (SLICES[1],))
    assert plan_here(f"gpus=[{SLICES[1]}]").trainer_gpus == (SLICES[1],)


def test_mig_without_a_device_is_refused(pretend: Pretend) -> None:
    pretend(None, [card(0, mig=[])])
    with pytest.raises(RequestError, match="GPU 0 cannot be used: MIG is on, and it has no MIG device"):
        read_machine()


def test_indices_of_different_cards_need_the_order_of_the_bus(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = [card(0, name="NVIDIA T1000", memory=4096 * MIB), card(1)]
    pretend("1", mixed)
    with pytest.raises(RequestError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        read_machine()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [gpu.name for gpu in read_machine().gpus] == ["NVIDIA H200"]
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    pretend(UUIDS[1], mixed)
    assert [gpu.name for gpu in read_machine().gpus] == ["NVIDIA H200"]


@pytest.mark.parametrize(
    ("changes", "reason"), [({"lost": True}, "GPU is lost"), ({"memory": UNREADABLE}, "its memory cannot be read")]
)
def test_a_card_that_cannot_be_used(changes: dict[str, Any], reason: str, pretend: Pretend) -> None:
    cards = [card(0), card(1, **changes), card(2)]
    pretend(None, cards)
    way_out = f"{UUIDS[0]},{UUIDS[2]}"
    with pytest.raises(
        RequestError, match=f"GPU 1 cannot be used: {reason}.*CUDA_VISIBLE_DEVICES={way_out}, or gpus=0"
    ):
        read_machine()
    pretend(way_out, cards)
    assert [gpu.id for gpu in read_machine().gpus] == [UUIDS[0], UUIDS[2]]
    pretend("0,2", cards)
    assert [gpu.id for gpu in read_machine().gpus] == [UUIDS[0], UUIDS[2]], "CUDA may number without the lost one"


@pytest.mark.parametrize("init", [9, 12])
def test_no_driver_is_no_gpu(init: int, pretend: Pretend) -> None:
    pretend(None, [], init)
    assert read_machine().gpus == ()


def test_a_broken_driver_is_named(pretend: Pretend) -> None:
    pretend("0", [], 18)
    with pytest.raises(RequestError, match="does not work: Driver/library version mismatch; gpus=0"):
        read_machine()
    assert read_machine(0).gpus == ()
    assert gpu_memory_gib(["0"]) is None


def test_a_driver_that_hangs_is_left_alone(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("0", [], "hang")
    monkeypatch.setattr(driver, "ANSWER_S", 1.0)
    started = time.monotonic()
    with pytest.raises(RequestError, match="does not answer within 1 s; gpus=0"):
        read_machine()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("words", "visible"),
    [(["gpus=0"], None), (["gpus=auto"], "-1"), (["--multirun", "gpus=0", "seed=1,2", "hydra/launcher=local"], None)],
)
def test_without_gpus_the_driver_is_not_asked(words: list[str], visible: str | None, pretend: Pretend) -> None:
    pretend(visible, [], "hang")
    argv = [sys.executable, "-m", "grpo_lab.train", *words, "dry_run=true", *SHORT]
    answer = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=25, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_memory_in_use_is_that_of_the_fullest(pretend: Pretend) -> None:
    pretend(None, [card(0, used=2**30), card(1, used=3 * 2**30), card(2, used=9 * 2**30)])
    assert gpu_memory_gib(["0", UUIDS[1]]) == 3.0
    assert gpu_memory_gib([]) is None
