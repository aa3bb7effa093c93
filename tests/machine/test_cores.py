"""A container's CPU quota, as the files of cgroup version 1 and 2 tell it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from grpo_lab.machine.cores import usable
from grpo_lab.machine.gpus import read_machine
from grpo_lab.rewards import cores
from grpo_lab.sweep.launchers.local import LocalBackend
from tests.planner.test_plan import ON_CPU, planned, with_gpus

V1 = (
    "{id} 31 0:29 {root} {at}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "36 31 0:35 / {at}/pids rw - cgroup cgroup rw,pids\n"
)
V2 = "{id} 31 0:38 {root} {at}/v2 rw - cgroup2 cgroup2 rw\n"


def process(folder: Path, mounts: str, own: str, files: dict[str, str], root: str = "/") -> Path:
    """The files of a pretended process in these cgroups."""
    (folder / "mountinfo").write_text(mounts.format(id=32, root=root, at=folder))
    (folder / "cgroup").write_text(own)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_no_quota(tmp_path: Path) -> None:
    unlimited = {
        "v2/cpu.max": "max 100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert cores.quota(process(tmp_path, V1 + V2, "3:cpu,cpuacct:/\n0::/\n", unlimited)) is None
    assert cores.quota(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("own", "root", "files", "limit"),
    [
        ("0::/\n", "/", {"v2/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/pod/box\n", "/", {"v2/pod/box/cpu.max": "max 100000\n", "v2/pod/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/pod/box\n", "/", {"v2/pod/box/cpu.max": "50000 100000\n", "v2/pod/cpu.max": "400000 100000\n"}, 0.5),
        ("0::/../../outside\n", "/", {"v2/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/docker/1f\n", "/docker/1f", {"v2/cpu.max": "300000 100000\n"}, 3.0),
    ],
)
def test_quota_of_version_2(own: str, root: str, files: dict[str, str], limit: float, tmp_path: Path) -> None:
    assert cores.quota(process(tmp_path, V2, own, files, root)) == limit


@pytest.mark.parametrize(
    ("own", "root", "below"), [("/box", "/", "box/"), ("/docker/1f", "/docker/1f", ""), ("/", "/", "")]
)
def test_quota_of_version_1(own: str, root: str, below: str, tmp_path: Path) -> None:
    folder = f"cpu,cpuacct/{below}"
    files = {f"{folder}cpu.cfs_quota_us": "250000\n", f"{folder}cpu.cfs_period_us": "100000\n"}
    assert cores.quota(process(tmp_path, V1, f"8:pids:/other\n3:cpu,cpuacct:{own}\n", files, root)) == 2.5


@pytest.mark.parametrize(("limit", "count"), [(0.4, 1), (1.0, 1), (2.9, 3), (1.5, 2), (16.0, 6), (None, 6)])
def test_cores_are_the_quota_s(limit: float | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota", lambda: limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3, 5, 6, 7})
    machine = read_machine(0)
    assert (machine.cores, machine.limited) == (count, count < 6)
    assert set(usable()) <= {1, 2, 3, 5, 6, 7}
    backend = LocalBackend(exclusive=False, max_parallel=None)
    assert len(backend._pool._free_cores) == count


def test_libraries_count_the_quota_s_cores() -> None:
    for machine in (ON_CPU, with_gpus(1)):
        limited = dataclasses.replace(machine, cores=3, limited=True)
        assert planned(limited).trainer[0].env["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in planned(with_gpus(1)).trainer[0].env


def test_ranks_of_a_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for size, share in (("1", 8), ("3", 2), ("100", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", size)
        assert cores.cores() == share
