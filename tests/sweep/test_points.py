"""Points before they run: composed as Hydra does, named once and for all, planned, refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig

from grpo_lab.config.compose import identity
from grpo_lab.config.errors import RequestError
from grpo_lab.config.naming import fixed_overrides, label, sweep_name
from grpo_lab.machine.gpus import Gpu, Machine
from grpo_lab.store.folder import Sweep
from grpo_lab.sweep import points
from grpo_lab.sweep.composer import Composer, without_hydra
from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.launchers.local import LocalBackend
from grpo_lab.sweep.launching import check
from grpo_lab.sweep.points import Point, freeze, write
from tests.planner.test_plan import VERSIONS

FOUR = Machine(gpus=tuple(Gpu(str(i), "NVIDIA H200", 139.0) for i in range(4)), cores=64, versions=VERSIONS)
TWO_CORES = Machine(cores=2, versions={**VERSIONS, "vllm": "0.31.0+cpu"})


def master(loader: ConfigLoader, *overrides: str) -> DictConfig:
    return loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)


CHOICES: list[list[str]] = [
    ["seed=3"],
    ["model=qwen2.5-0.5b", "seed=3", "grpo.learning_rate=1e-5"],
    ["vllm=server", "vllm.dp=2", "vllm.engine.max_num_seqs=8", "data=gsm8k", "data.limit=5"],
    ["rewards=[accuracy]", "rewards.accuracy.weight=0.5", "rewards.mine._target_=a.b"],
    ["model.name=x", "+grpo.extra={a: 1}", "grpo.max_steps=5", "++vllm.env.A=b", "~rewards.format"],
    ["name='a b'", "gpus=[0,1]", "peft=lora", "peft.options.r=4", "hydra.job.name=other"],
]


@pytest.mark.parametrize("overrides", CHOICES)
def test_composed_as_by_hydra(loader: ConfigLoader, overrides: list[str]) -> None:
    command = master(loader, *overrides)
    composer = Composer(loader, command)
    expected = loader.load_sweep_config(command, overrides)
    whole = composer.whole(overrides, number=7)
    assert (whole.hydra.job.num, whole.hydra.job.id) == (7, f"{whole.hydra.job.name}_7")
    for config in (whole, expected):
        del config.hydra.job.num, config.hydra.job.id
    assert whole == expected
    assert composer.task(overrides) == without_hydra(expected)


def test_a_file_that_changes_later_changes_no_point(loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    composer = Composer(loader, master(loader))
    before = composer.task(["seed=1", "model=qwen2.5-0.5b"])
    monkeypatch.setattr(loader, "load_sweep_config", lambda *_: pytest.fail("read again"))
    after = composer.whole(["seed=2", "model=qwen2.5-0.5b"], 1)
    assert after.model == before.model


def frozen(loader: ConfigLoader, folder: Path, machine: Machine, *jobs: list[str], fixed: Any = ()) -> list[Point]:
    backend = LocalBackend(exclusive=False, max_parallel=None, machine=machine)
    return freeze(Composer(loader, master(loader)), jobs, 0, fixed, Sweep(folder), backend)


@pytest.mark.parametrize(
    ("overrides", "need"),
    [
        (["vllm=off"], Need(gpus=4, cores=64)),
        (["vllm=off", "trainer_gpus=1"], Need(gpus=1, cores=16)),
        (["vllm=off", "launcher.gpus_per_job=2"], Need(gpus=2, cores=32)),
        (["vllm=colocate", "vllm.tp=2"], Need(gpus=2, cores=32)),
        (["vllm=server", "vllm.dp=2", "trainer_gpus=1"], Need(gpus=3, cores=48)),
        (["gpus=[3,1]"], Need(gpus=2, cores=32, pinned=("3", "1"))),
        (["gpus=0"], Need(gpus=0, cores=1)),
    ],
)
def test_needs_of_the_plan(loader: ConfigLoader, tmp_path: Path, overrides: list[str], need: Need) -> None:
    (point,) = frozen(loader, tmp_path, FOUR, overrides)
    assert (point.refused, point.need) == (None, need)


def test_cores_on_a_machine_without_gpus(loader: ConfigLoader, tmp_path: Path) -> None:
    jobs = [["vllm=off"], ["vllm=colocate", "vllm.dp=2"], ["vllm=server", "vllm.dp=2"]]
    assert [point.need.cores for point in frozen(loader, tmp_path, TWO_CORES, *jobs)] == [1, 2, 2]


def test_infeasible_points_are_named(loader: ConfigLoader, tmp_path: Path) -> None:
    good, big, odd = frozen(
        loader,
        tmp_path,
        FOUR,
        ["vllm=colocate", "vllm.tp=2"],
        ["vllm=colocate", "vllm.dp=8"],
        ["vllm=colocate", "vllm.tp=3"],
    )
    assert good.refused is None
    assert "need 8 GPUs, there are 4" in str(big.refused)
    assert "does not divide the 4 attention heads" in str(odd.refused)
    assert odd.config is not None
    with pytest.raises(RequestError, match="need 8 GPUs"):
        check([big, odd], odd.config.sweep)
    check([good, big], odd.config.sweep)
    with pytest.raises(RequestError, match="the only choice is failed"):
        check([good], dataclasses.replace(odd.config.sweep, retry="all"))


def test_frozen_to_a_file_without_secrets(loader: ConfigLoader, tmp_path: Path) -> None:
    jobs = [["seed=1", "vllm.env.HF_TOKEN=hf_secret"], ["seed=2", "vllm.env.HF_TOKEN=hf_secret"]]
    frozen_points = frozen(loader, tmp_path, FOUR, *jobs, fixed=["vllm.env.HF_TOKEN=hf_secret"])
    write(frozen_points, Sweep(tmp_path), "python -m grpo_lab.train --multirun seed=1,2")
    first, second = points.frozen(Sweep(tmp_path)).points
    assert [first.name, first.overrides, second.name] == ["seed=1", ("seed=1",), "seed=2"]
    assert second.config["seed"] == 2
    assert "hf_secret" not in (tmp_path / "sweep.json").read_text()
    config = frozen_points[0].config
    assert config is not None
    assert (config.runs_dir, config.name, config.resume) == (str(tmp_path), "seed=1", True)
    assert (config.sweep.name, config.sweep.overrides) == (tmp_path.name, ["seed=1"])


def test_no_two_points_share_a_folder(loader: ConfigLoader, tmp_path: Path) -> None:
    first = frozen(loader, tmp_path, FOUR, ["seed=1"], ["seed=2"])
    write(first, Sweep(tmp_path), "")
    # The same command after the files in conf/ have changed, and two overrides that give the same file name.
    again = frozen(loader, tmp_path, FOUR, ["seed=1", "grpo.beta=0.1"], ["seed=2"], fixed=["grpo.beta=0.1"])
    assert again[0].name == f"seed=1-{identity(again[0].config)}"  # type: ignore[arg-type]
    assert again[1].name == "seed=2"
    jobs = ["name='a/b'", "seed=1"], ["name='a b'", "seed=2"]
    alike = frozen(loader, tmp_path / "b", FOUR, *jobs, fixed=["seed=1", "seed=2"])
    assert len({point.name for point in alike}) == 2
    same = frozen(loader, tmp_path, FOUR, ["seed=5"], ["seed=5"])
    assert same[0].name == same[1].name


def test_names_of_sweeps() -> None:
    name = sweep_name(None, ["seed=1,2", "model=qwen2.5-0.5b"])
    assert name.startswith("seed-")
    assert name == sweep_name(None, ["seed=1,2,3", "model=qwen2.5-0.5b", "launcher.max_parallel=1", "sweep.force=true"])
    assert name != sweep_name(None, ["seed=1,2", "model=qwen2.5-1.5b"])
    assert name != sweep_name(None, ["seed=1,2", "model=qwen2.5-0.5b", "grpo.beta=0.1"])
    assert sweep_name("mine", ["seed=1,2"]) == "mine"
    assert sweep_name(None, ["experiment=tp_dp"]).startswith("tp_dp-")


def test_names_of_points() -> None:
    assert label(["model=qwen2.5-0.5b", "vllm.tp=2"]) == "model=qwen2.5-0.5b,vllm.tp=2"
    assert label(["data.path=/a b/c"]) == "data.path=_a_b_c"
    assert len(label([f"grpo.key{i}=value" for i in range(40)])) <= 120
    assert fixed_overrides(["seed=1,2", "name='x y'", "grpo.beta=0.1"]) == {"name='x y'", "grpo.beta=0.1"}
