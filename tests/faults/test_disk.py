"""Full disks, which are small file systems in memory, and checkpoints that are not what was written."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import pytest
import safetensors.torch
import torch

from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import Config, ModelConfig
from grpo_lab.machine.disk import DiskFull, check_room, writing
from grpo_lab.store import checkpoints, completions
from grpo_lab.store import folder as store
from grpo_lab.store import picture as curve
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Result
from tests.conftest import SHORT, cli, failure_message, running, wait_for_step
from tests.faults.rewards import fill

QUICK = [*SHORT, "eval.enabled=false", "grpo.save_steps=1", "grpo.generation_batch_size=16", "rewards=[]"]
LENGTHS = "rewards.mine._target_=tests.faults.rewards.lengths"
FULL = "No space left on device"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a size, such as `9m`; called again, changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        kind = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        made = subprocess.run(["mount", *kind, str(folder)], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {made.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def undamaged(run: Run) -> list[int]:
    """Steps of the checkpoints, each of which must be whole to the last byte."""
    folders = {step: checkpoints.damage(folder, contents=True) for step, folder in run.sealed_checkpoints().items()}
    assert set(folders.values()) <= {None}
    return sorted(folders)


def assert_resumes(run: Run, *asked: str, steps: int = 4) -> None:
    ended = cli(*asked, "resume=true")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "going on from step" in ended.stdout
    assert [row["step"] for row in run.rows()] == list(range(1, steps + 1))
    assert len(pandas.read_parquet(run.completions)) == steps * 16


def test_no_room_for_a_checkpoint(small_disk: Callable[[str], Path]) -> None:
    """Two of 12.2 MiB fit. The third is not begun; with room for it the same command finishes."""
    disk = small_disk("32m")
    asked = [*QUICK, LENGTHS, f"runs_dir={disk}", "name=one"]
    ended, run = cli(*asked), Run(disk / "one")
    message = failure_message(run, ended, "disk_full")
    assert f"{FULL}: {run.checkpoint(3)}: 12.1 MiB are needed and" in message
    assert "are free; make room, then resume=true" in message
    assert undamaged(run) == [1, 2]
    assert not run.checkpoint(3).exists()
    assert [row["step"] for row in run.rows()] == [1, 2, 3]
    small_disk("100m")
    assert_resumes(run, *asked)


def test_a_checkpoint_that_does_not_fit_after_all_leaves_nothing(small_disk: Callable[[str], Path]) -> None:
    """Room for the weights, which is all that is known before the first one, not for the optimizer's state."""
    disk = small_disk("9m")
    ended, run = cli(*QUICK, LENGTHS, f"runs_dir={disk}", "name=one"), Run(disk / "one")
    assert f"{FULL}: {run.checkpoint(1)}" in failure_message(run, ended, "disk_full")
    assert not run.checkpoint(1).exists()
    assert len(pandas.read_parquet(run.completions)) == 16


def test_a_disk_that_another_program_fills(small_disk: Callable[[str], Path]) -> None:
    """In the third step; whichever file comes first, the run says which, and the room held back is enough to say so."""
    disk = small_disk("100m")
    run = Run(disk / "one")
    filling = ["_target_=tests.faults.rewards.filling", "step=3", f"disk={disk}", "steal=''"]
    ended = cli(*QUICK, *(f"rewards.mine.{one}" for one in filling), f"runs_dir={disk}", "name=one")
    message = failure_message(run, ended, "disk_full")
    assert message.startswith(f"{FULL}: {run.folder}/")
    assert undamaged(run) == [1, 2]
    assert [row["step"] for row in run.rows()] == [1, 2]


def test_a_result_that_cannot_be_written_is_said(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("100m")
    run = Run(disk / "one")
    filling = ["_target_=tests.faults.rewards.filling", "step=2", f"disk={disk}", f"steal={run.ballast}"]
    ended = cli(*QUICK, *(f"rewards.mine.{one}" for one in filling), f"runs_dir={disk}", "name=one")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "failed: disk_full" in ended.stdout
    assert FULL in ended.stdout
    assert f"cannot write {run.result}" in ended.stdout
    assert not run.result.exists()
    assert undamaged(run) == [1]


def test_a_disk_that_is_full_from_the_start(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("100k")
    ended = cli(*QUICK, LENGTHS, f"runs_dir={disk}", "name=one")
    assert ended.returncode == 1
    assert f"error: {FULL}: {disk / 'one'}" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not Run(disk / "one").config.exists()


def test_a_disk_that_fills_under_a_bench(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("100m")
    run = Run(disk / "one")
    quick = ["bench.prompts=4", "bench.num_generations=2", "bench.prompt_len=8", "bench.completion_len=4"]
    endless = [*quick, "bench.warmup=0", "bench.repeats=100000", "vllm=off", "tracker=none"]
    with running(*endless, f"runs_dir={disk}", "name=one", module="grpo_lab.bench") as process:
        wait_for_step(run, 1)
        fill(disk / "filler")
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 1, shown
    assert "Traceback" not in shown
    assert "failed: disk_full" in shown
    failure = store.read_json(run.result)["failure"]
    assert failure["class"] == "disk_full"
    assert failure["message"].startswith(f"{FULL}: {run.folder}/")
    assert not run.ballast.exists()


def test_a_disk_that_fills_under_an_evaluation(small_disk: Callable[[str], Path]) -> None:
    """What was answered is kept: with room again the same command goes on."""
    disk = small_disk("100m")
    words = [str(ASSETS / "tiny"), "data=arithmetic", "evaluate.problems=64", "evaluate.batch_size=1", "vllm=off"]
    words.append(f"runs_dir={disk}")
    with running(*words, module="grpo_lab.evaluate") as process:
        deadline = time.monotonic() + 200
        while not (parts := list(disk.glob("*/evaluations/*/parts/part-*"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        fill(disk / "filler")
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 1, shown
    assert "Traceback" not in shown
    assert "failed: disk_full" in shown
    folder = parts[0].parents[1]
    assert f"{FULL}: {folder}" in shown
    assert not Run(folder).ballast.exists()
    kept = len(list(parts[0].parent.glob("part-*")))
    assert 0 < kept < 64
    (disk / "filler").unlink()
    ended = cli(*words, module="grpo_lab.evaluate")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "n=64 problems" in ended.stdout


def test_every_writer_names_its_file_and_leaves_the_old_one(small_disk: Callable[[str], Path]) -> None:
    run = Run(small_disk("1m"))
    run.step_completions.mkdir(parents=True)
    frame = pandas.DataFrame({"step": [1] * 200, "completion": ["x" * 400 + str(number) for number in range(200)]})
    frame.to_parquet(run.step_completions / "completions_00001.parquet")
    rows = [{"step": step, "reward": 0.5} for step in range(1, 9)]
    for row in rows:
        run.append_metrics(row)
    old = "old\n" * 2048  # two pages, so that no new contents fit into what it frees
    for file in (run.config, run.progress, run.completions):
        file.write_text(old)
    fill(run.folder / "filler")
    metrics: dict[str, object] = {"accuracy_before": None, "accuracy_after": None}
    writers: list[tuple[Path, Callable[[], None]]] = [
        (run.config, lambda: store.save_config(Config(model=ModelConfig(name="m", path="p")), run.config)),
        (run.progress, lambda: store.write_json(run.progress, {"phase": "training"})),
        (run.completions, lambda: completions.gather(run)),
        (run.metrics, lambda: run.append_metrics({"step": 9, "padding": "x" * 5000})),
        (run.reward_curve, lambda: curve.draw(run, Result(status="finished", metrics=metrics))),
    ]
    for file, write in writers:
        with pytest.raises(DiskFull, match=f"{FULL}: {file}: .*free"):
            write()
    assert {file.read_text() for file in (run.config, run.progress, run.completions)} == {old}
    assert run.rows() == rows
    assert not run.reward_curve.exists()
    known = {"config.yaml", "progress.json", "completions.parquet", "metrics.jsonl", "checkpoints", "filler"}
    assert {file.name for file in run.folder.iterdir()} == known, "no torn drafts"


def test_every_library_that_writes_checkpoints_is_understood(small_disk: Callable[[str], Path]) -> None:
    disk, values = small_disk("1m"), {"weights": torch.zeros(10**6)}
    for write in (torch.save, safetensors.torch.save_file):
        file = disk / "file"
        with pytest.raises(DiskFull, match=r"3\.8 MiB are needed"), writing(file, 4 * 10**6):
            write(values, file)
        file.unlink(missing_ok=True)
    with pytest.raises(DiskFull, match=r"95\.4 MiB are needed"):
        check_room(disk / "checkpoint-1", 10**8)
    with pytest.raises(RuntimeError, match="else"), writing(disk / "file"):
        raise RuntimeError("something else")


def test_a_torn_file_of_completions_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_completions.mkdir(parents=True)
    for step in (1, 2):
        pandas.DataFrame({"step": [step]}).to_parquet(run.step_completions / f"completions_{step:05}.parquet")
    torn = run.step_completions / "completions_00003.parquet"
    torn.write_bytes((run.step_completions / "completions_00002.parquet").read_bytes()[:-9])
    completions.gather(run)
    assert list(pandas.read_parquet(run.completions)["step"]) == [1, 2]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Run]:
    """The command of a run that ended in its third step, and what it left: checkpoints 1 and 2."""
    runs = tmp_path_factory.mktemp("runs")
    killing = ["_target_=tests.faults.rewards.killing", "step=3", f"done={runs}/killed"]
    asked = [*QUICK, *(f"rewards.mine.{one}" for one in killing), f"runs_dir={runs}", "name=one"]
    ended, run = cli(*asked), Run(runs / "one")
    assert ended.returncode == 1
    assert undamaged(run) == [1, 2], ended.stdout
    return asked, run


def test_damage_to_any_file_is_seen(stopped: tuple[list[str], Run], tmp_path: Path) -> None:
    _, run = stopped
    names = sorted(file.name for file in run.checkpoint(2).iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(names)
    for name in names:
        for harm, contents in ((cut, name == checkpoints.SEAL), (Path.unlink, False), (flip, True)):
            copy = tmp_path / "checkpoint-2"
            shutil.copytree(run.checkpoint(2), copy)
            harm(copy / name)
            if checkpoints.is_sealed(copy):
                assert checkpoints.damage(copy, contents=contents), (name, harm)
            else:
                assert name == checkpoints.SEAL, "what has no list was never written to its end"
            shutil.rmtree(copy)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_and_said(stopped: tuple[list[str], Run]) -> None:
    """Both damaged: refused, and nothing changed. Only the last: the one before is used."""
    asked, run = stopped
    first = run.checkpoint(1) / "optimizer.pt"
    content = first.read_bytes()
    flip(run.checkpoint(2) / "model.safetensors")
    flip(first)
    refused = cli(*asked, "resume=true")
    assert refused.returncode == 2
    assert "has no whole checkpoint" in refused.stderr
    assert "checkpoint-1: optimizer.pt has other contents than were written" in refused.stderr
    assert "resume=false starts over" in refused.stderr
    assert run.checkpoint(2).is_dir()

    first.write_bytes(content)
    ended = cli(*asked, "resume=true")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "checkpoint-2 is damaged (model.safetensors has other contents than were written)" in ended.stdout
    assert "going on from step 1" in ended.stdout
    assert (run.checkpoints / "damaged-2" / "model.safetensors").is_file()
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4]
    assert undamaged(run) == [1, 2, 3, 4]
