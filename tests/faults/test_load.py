"""Much of everything: points, steps, rows and metrics, and what is left of it in memory, on the disk and in tables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from grpo_lab.machine.gpus import Machine
from grpo_lab.reporter import contents
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.sweep.launchers.base import Attempt, Need, Work
from grpo_lab.sweep.launchers.local import LocalBackend
from tests.conftest import ROOT, assert_none_left, ownerless, running

POINTS = int(os.environ.get("GRPO_LAB_LOAD_POINTS", "200"))
STEPS = int(os.environ.get("GRPO_LAB_LOAD_STEPS", "2000"))
SMALLEST = [
    *("grpo.generation_batch_size=2", "grpo.num_generations=2", "grpo.per_device_train_batch_size=2"),
    *("grpo.max_completion_length=4", "eval.enabled=false", "data.train_size=64", "tracker=none"),
]
"""Overrides for steps of a tenth of a second."""
MIB = 2**20


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def of_ours(folder: str, beginning: str) -> set[str]:
    return {name for name in os.listdir(folder) if name.startswith(beginning)}


def footprint() -> tuple[int, set[str], set[int]]:
    """What could leak of the launcher's own: open files, scratch folders, children."""
    children = {one.pid for one in psutil.Process().children(recursive=True)}
    return descriptors(), of_ours(tempfile.gettempdir(), "grpo-lab-"), children


def test_forty_points_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trivial commands in the slots of the launcher, each with a file in its scratch folder, a child of its own, and
    shared memory that the child holds."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mark = f"grpo-lab-test-{uuid.uuid4().hex}"
    program = (
        "import os, subprocess\n"
        "open(os.path.join(os.environ['VLLM_RPC_BASE_PATH'], 'socket'), 'w').write('x')\n"
        f"name = f'/dev/shm/{mark}-{{os.getpid()}}'\n"
        "subprocess.Popen(['sleep', '600'], stdout=open(name, 'w'))\n"
        "print(name)"
    )
    backend = LocalBackend(exclusive=False, max_parallel=4, machine=Machine(cores=4))
    waiting = [Work(f"p{n}", (sys.executable, "-S", "-c", program), tmp_path / f"p{n}.log", Need()) for n in range(40)]
    before, active, ended = footprint(), [], []
    deadline = time.monotonic() + 300
    while waiting or active:
        assert time.monotonic() < deadline
        while waiting and (attempt := backend.start(waiting[0])) is not None:
            active.append(attempt)
            waiting.pop(0)
        ended += [code for attempt in active if (code := attempt.poll()) is not None]
        active = [attempt for attempt in active if not _over(attempt)]
        time.sleep(0.02)
    backend.close()
    assert ended == [0] * 40
    assert footprint() == before
    made = {log.read_text().strip() for log in tmp_path.glob("p*.log")}
    assert len(made) == 40
    assert not any(map(os.path.exists, made))


def _over(attempt: Attempt) -> bool:
    return attempt.poll() is not None


@pytest.mark.nightly
def test_a_sweep_of_many_points_leaks_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Real runs of one step. The launcher's own memory and open files stay what they were after the first points."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    shared = ownerless()
    seeds = f"seed={','.join(map(str, range(POINTS)))}"
    argv = [sys.executable, "-m", "grpo_lab.train", "--multirun", *SMALLEST, "grpo.max_steps=1", "grpo.save_steps=10"]
    env = {**os.environ, "TMPDIR": str(scratch)}
    seen: list[tuple[int, int, int]] = []
    with (tmp_path / "out").open("w") as out:
        sweep = subprocess.Popen(
            [*argv, seeds, "name=many", f"runs_dir={tmp_path}/runs"], cwd=ROOT, env=env, stdout=out
        )
        launcher = psutil.Process(sweep.pid)
        while sweep.poll() is None:
            try:
                tree = len(launcher.children(recursive=True))
                seen.append((launcher.num_fds(), launcher.memory_info().rss // MIB, tree))
            except psutil.NoSuchProcess:
                break
            time.sleep(1.0)
    folders = tmp_path / "runs" / "many"
    results = [store.read_json(file) for file in folders.glob("*/result.json")]
    disk = sum(file.stat().st_size for file in folders.rglob("*") if file.is_file()) / MIB
    early, late = seen[len(seen) // 4 : len(seen) // 2], seen[-len(seen) // 4 :]
    told = {"points": len(results), "disk_mib": round(disk), "early": max(early), "late": max(late)}
    print(told)
    record_property("load", told)
    assert sweep.returncode == 0
    assert [result["status"] for result in results] == ["finished"] * POINTS
    assert max(one[0] for one in late) <= max(one[0] for one in early) + 2
    assert max(one[1] for one in late) <= max(one[1] for one in early) + 20 + POINTS // 10
    assert max(one[2] for one in late) <= max(one[2] for one in early) + 2
    assert not [name for name in os.listdir(scratch) if name.startswith("grpo-lab-") and "ports" not in name]
    assert_none_left(shared)
    assert not list(folders.glob("jobs/*.job"))


@pytest.mark.nightly
def test_the_memory_of_a_long_run_stays_flat(runs: Path, record_property: Callable[[str, object], None]) -> None:
    """Resident memory of the worker, taken about every second; the last half against the quarter before it."""
    run, curve = Run(runs / "long"), []
    asked = [*SMALLEST, f"grpo.max_steps={STEPS}", f"grpo.save_steps={STEPS}", "name=long", f"runs_dir={runs}"]
    with running(*asked) as conductor:
        while conductor.poll() is None:
            rows, _ = store.read_new_rows(run.metrics, 0)
            resident = [one.memory_info().rss // MIB for one in _workers(conductor.pid)]
            if rows and resident:
                curve.append((rows[-1]["step"], max(resident)))
            time.sleep(1.0)
        assert conductor.returncode == 0
    print([point for index, point in enumerate(curve) if index % max(1, len(curve) // 20) == 0])
    record_property("curve", curve)
    quarter = [memory for step, memory in curve if STEPS / 4 <= step < STEPS / 2]
    half = [memory for step, memory in curve if step >= STEPS / 2]
    assert len(run.rows()) == STEPS
    assert max(half) <= max(quarter) * 1.03 + 10


def _workers(conductor: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(conductor).children(recursive=True)
        return [one for one in children if "grpo_lab.worker" in one.cmdline()]
    except psutil.Error:
        return []


READ = """
import sys, threading, time
import datasets
kind, path, cache = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
datasets.disable_progress_bars()
from grpo_lab import data
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"): return int(line.split()[1]) // 1024
peak = base = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
started = time.monotonic()
columns = {"prompt": "question", "solution": "answer"}
rows = getattr(data, kind)("train", path=path, columns=columns, held_out=0.01, system_prompt="r1")
count = sum(len(batch["prompt"]) for batch in rows.iter(1000))
print(count, peak - base, round(time.monotonic() - started, 1))
"""
ROOM_MIB = 400
"""Anonymous memory, the kind that cannot be paged out, that reading data may take, however many rows there are."""


def read_rows(kind: str, rows: int, folder: Path) -> tuple[int, int, float]:
    """(rows read, peak of anonymous memory in MiB beyond that of the libraries, seconds)."""
    file = folder / f"rows.{kind}"
    text = "How many apples are left of {n} when Ann takes three and Ben takes the rest? " * 4
    if kind == "jsonl":
        with file.open("w") as lines:
            lines.writelines(json.dumps({"question": text.format(n=n), "answer": str(n)}) + "\n" for n in range(rows))
    else:
        _write_parquet(file, text, rows)
    ended = subprocess.run(
        [sys.executable, "-c", READ, kind, str(file), str(folder / "cache")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    count, peak, seconds = ended.stdout.split()
    print(kind, f"{file.stat().st_size / MIB:.0f} MiB, {peak} MiB anonymous, {seconds} s")
    return int(count), int(peak), float(seconds)


def _write_parquet(file: Path, text: str, rows: int) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema({"question": pyarrow.string(), "answer": pyarrow.string()})
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 10_000):
            numbers = range(start, min(rows, start + 10_000))
            columns = {"question": [text.format(n=n) for n in numbers], "answer": list(map(str, numbers))}
            writer.write_table(pyarrow.table(columns, schema))


def test_a_hundred_thousand_rows_take_little_memory(tmp_path: Path) -> None:
    count, peak, _ = read_rows("jsonl", 100_000, tmp_path)
    assert 98_500 < count < 99_500
    assert peak < ROOM_MIB


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_million_rows_take_no_more(kind: str, tmp_path: Path) -> None:
    count, peak, _ = read_rows(kind, 1_000_000, tmp_path)
    assert 985_000 < count < 995_000
    assert peak < ROOM_MIB


def test_the_metrics_of_a_hundred_thousand_steps_are_read_in_seconds(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "long")
    run.folder.mkdir(parents=True)
    names = [f"rewards/{name}/mean" for name in "abcdefgh"] + [
        f"time_s/{name}" for name in ("generate", "train", "sync")
    ]
    with run.metrics.open("w") as lines:
        for step in range(1, 100_001):
            lines.write(json.dumps({"step": step, "loss": 0.1, **dict.fromkeys(names, step / 7)}) + "\n")
    store.write_json(run.result, {"status": "finished", "failure": None, "metrics": {"reward_last": 1.0}})
    started = time.process_time()
    rows, offset = store.read_new_rows(run.metrics, 0)
    (summary,) = store.load(tmp_path / "runs")
    took = time.process_time() - started
    assert len(rows) == 100_000
    assert (rows[-1]["step"], summary["reward_last"]) == (100_000, 1.0)
    assert store.read_new_rows(run.metrics, offset) == ([], offset)
    assert took < 5, took


def test_the_metrics_of_a_hundred_thousand_steps_are_reported_in_seconds(tmp_path: Path) -> None:
    """Curve and all; a real run with its rows again and again."""
    folder = shutil.copytree(ROOT / "notebooks/results/training_curves/seed=0,vllm=off", tmp_path / "long")
    rows = Run(folder).rows()
    with Run(folder).metrics.open("w") as lines:
        for step in range(1, 100_001):
            lines.write(json.dumps({**rows[step % len(rows)], "step": step}) + "\n")
    started = time.process_time()
    made = contents.make([folder])
    took = time.process_time() - started
    assert "Reward over the steps: tiny" in [picture.title for picture in made.pictures]
    assert not made.troubles
    assert took < 5, took
