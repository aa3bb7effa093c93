"""What the harness costs: its runs and plain TRL scripts of the same work, in turn, in one session.

    python benchmarks/overhead.py --out results.csv [--repeats 2] -- model=qwen2.5-0.5b model.weights=random ...

Everything after `--` is an override for every run. For each generation mode one line: median step time (wall seconds
from step end to step end, warm-up left out) of the harness and of plain TRL, their ratio, and the phases.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from grpo_lab.machine.gpus import describe, read_machine
from grpo_lab.planner.train import Plan
from grpo_lab.store import folder as store
from grpo_lab.store import records, stats
from grpo_lab.store.folder import Run
from grpo_lab.store.measures import PHASES

MODES = {"off": ["vllm=off"], "colocate": ["vllm=colocate"], "colocate+sleep": ["vllm=colocate", "vllm.sleep=true"]}
WARMUP = 2


def harness(name: str, overrides: list[str], folder: Path) -> Run:
    argv = [sys.executable, "-m", "grpo_lab.train", *overrides, f"runs_dir={folder}", f"name={name}", "tracker=none"]
    subprocess.run(argv, check=True)
    return Run(folder / name)


def plain(run: Run, out: Path) -> list[float]:
    """Wall seconds of each step of the plain script. It gets the environment that the plan gave the worker."""
    script = Path(__file__).with_name("plain_trl.py")
    environment = {**os.environ, **records.must_read(run.plan, Plan).trainer[0].env, "PYTHONPATH": _python_path()}
    with out.with_suffix(".log").open("w") as log:
        argv = [sys.executable, str(script), str(run.folder), "--out", str(out)]
        subprocess.run(argv, env=environment, check=True, stdout=log, stderr=subprocess.STDOUT)
    return list(json.loads(out.read_text())["wall_s"])


def _python_path() -> str:
    return os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])


def compare(mode: str, overrides: list[str], folder: Path, repeats: int) -> dict[str, Any]:
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(repeats):
        run = harness(f"{mode}-{turn}", [*MODES[mode], *overrides], folder)
        # What follows the first step's end is the first whole interval; both sides leave out WARMUP of them.
        ours += [row["step_time_s"] + row["pause_s"] for row in run.rows()[WARMUP:]]
        theirs += plain(run, folder / f"{mode}-{turn}.json")[WARMUP:]
    harness_s, plain_s = stats.timing(ours), stats.timing(theirs)
    assert harness_s is not None
    assert plain_s is not None
    result = store.read_json(run.result)["metrics"]
    return {
        "mode": mode,
        "harness_s": harness_s["median"],
        "harness_ci95": harness_s["ci95"],
        "plain_trl_s": plain_s["median"],
        "plain_trl_ci95": plain_s["ci95"],
        "n": harness_s["n"],
        "ratio": statistics.median(ours) / statistics.median(theirs),
        **{f"{phase}_s": result["time_s"][phase]["median"] for phase in PHASES},
        "generated_tokens_per_s": result["generated_tokens_per_s"]["median"],
        "logp_difference": (result["logp_difference"] or {}).get("median"),
        "peak_memory_gib": result["peak_memory_gib"]["trainer"],
        "startup_s": result["startup_s"]["trainer"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/overhead"))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    hardware = {**describe(read_machine()), "command": shlex.join(["python", *sys.argv])}
    rows = []
    for mode in asked.modes:
        rows.append({**compare(mode, asked.overrides, asked.folder, asked.repeats), **hardware})
        with asked.out.open("w", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    for row in rows:
        print(f"{row['mode']:<15} harness {row['harness_s']:.3f} s, plain TRL {row['plain_trl_s']:.3f} s", end=", ")
        print(f"ratio {row['ratio']:.3f}")


if __name__ == "__main__":
    main()
