"""What the launcher of sweeps costs: `python -m benchmarks.launcher [--csv FILE]`, thirteen minutes, no GPU.

1. Packing: 64 jobs of 1, 2 and 4 slots that sleep a known time, on 4 slots. Makespan over the bound that no packing
   can beat (all slots busy from start to end).
2. Start-up: seconds that a point takes on top of its own work, for points that do nothing, one after the other.
3. A thousand points: composed, planned, frozen, and found finished. Seconds of the whole command.
"""

from __future__ import annotations

import argparse
import csv
import functools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from rich.console import Console

from grpo_lab.config.schema import LauncherConfig
from grpo_lab.machine.gpus import Gpu, Machine, describe, read_machine
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Row, Sweep
from grpo_lab.sweep import job
from grpo_lab.sweep.board import Board
from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.launchers.local import LocalBackend
from grpo_lab.sweep.points import Point
from grpo_lab.sweep.running import Course
from grpo_lab.sweep.track import Track

JOBS, SLOTS, POINTS, EMPTY = 64, 4, 1000, 12
SLEEP_S = (12.0, 24.0)


def sleeper(seconds: float, config: DictConfig) -> None:
    time.sleep(seconds)


def carried_out(folder: Path, needs: list[int], sleeps: list[float]) -> float:
    """Seconds that the launcher takes for Hydra jobs that sleep: real processes, slots that need not be GPUs."""
    sweep = Sweep(folder)
    sweep.jobs.mkdir(parents=True)
    points = [Point(at, f"job{at}", (), folder / f"job{at}", need=Need(gpus=slots)) for at, slots in enumerate(needs)]
    tracks = [Track(point, sweep.log(point.name)) for point in points]
    machine = Machine(gpus=tuple(Gpu(str(slot), "slot", 0.0) for slot in range(SLOTS)), cores=SLOTS)
    backend = LocalBackend(exclusive=False, max_parallel=None, machine=machine)
    packed = {point.name: _packed(folder, sleeps, point) for point in points}
    started = time.monotonic()
    Course(tracks, sweep, backend, LauncherConfig(), lambda point: packed[point.name], Board(Console(quiet=True))).run()
    took = time.monotonic() - started
    assert all(track.state == "finished" for track in tracks), {track.point.name: track.failure for track in tracks}
    return took


def _packed(folder: Path, sleeps: list[float], point: Point) -> bytes:
    with initialize_config_dir(str(folder), version_base="1.3", job_name="sleep"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = compose(
            overrides=[f"hydra.sweep.dir={folder}", f"hydra.sweep.subdir={point.name}"], return_hydra_config=True
        )
        with open_dict(config.hydra.job):
            config.hydra.job.num, config.hydra.job.id = point.number, point.name
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        return job.pack(context, functools.partial(sleeper, sleeps[point.number]), config)


def packing(folder: Path) -> Row:
    luck = random.Random(0)
    needs, sleeps = [luck.choice((1, 2, 4)) for _ in range(JOBS)], [luck.uniform(*SLEEP_S) for _ in range(JOBS)]
    took = carried_out(folder, needs, sleeps)
    bound = sum(slots * seconds for slots, seconds in zip(needs, sleeps, strict=True)) / SLOTS
    return {"what": "makespan over the bound, 64 jobs on 4 slots", "value": took / bound, "unit": "ratio", "n": 1}


def start_up(folder: Path) -> Row:
    """Points of all slots, so one after the other; each does nothing."""
    took = [carried_out(folder / str(at), [SLOTS], [0.0]) for at in range(EMPTY)]
    return {"what": "one empty point", "value": statistics.median(took), "unit": "s", "n": EMPTY}


def thousand(folder: Path) -> Row:
    """The whole command over points that are all finished. Their results are written here, not trained."""
    argv = [sys.executable, "-m", "grpo_lab.train", "--multirun", f"seed=range({POINTS})", f"runs_dir={folder}"]
    argv += ["name=many", "tracker=none"]
    subprocess.run([*argv, "dry_run=true"], check=True, stdout=subprocess.DEVNULL)
    finished = {"status": "finished", "failure": None, "metrics": {}}
    for seed in range(POINTS):
        (folder / "many" / f"seed={seed}").mkdir(parents=True)
        store.write_json(Sweep(folder / "many").run(f"seed={seed}").result, finished)
    started = time.monotonic()
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    took = time.monotonic() - started
    assert f"{POINTS} finished before" in done.stdout, done.stdout
    return {"what": "1,000 points expanded, frozen and skipped", "value": took, "unit": "s", "n": 1}


MEASUREMENTS: dict[str, Callable[[Path], Row]] = {"packing": packing, "start_up": start_up, "thousand": thousand}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MEASUREMENTS, []], help="all if none is given")
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    machine = describe(read_machine())
    where = {key: machine[key] for key in ("processor", "cores", "python", "hydra-core")}
    for name in asked.names or MEASUREMENTS:
        with tempfile.TemporaryDirectory() as scratch:
            row = MEASUREMENTS[name](Path(scratch) / "sweep")
        print(f"{row['what']}: {row['value']:.3f} {row['unit']} (n={row['n']})", flush=True)
        rows.append(row | where)
    if asked.csv:
        with asked.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
