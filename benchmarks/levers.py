"""What each lever of speed is worth: a plain TRL script and runs of the harness with levers on and off, in turn.

    python benchmarks/levers.py --out levers.csv [--turns 2] [--sides plain all] -- vllm=colocate model=qwen2.5-0.5b ...

Everything after `--` is an override for every run; the plain script takes its arguments from the run with every lever
off, whose passes and checkpointing are TRL's defaults. One row a side: wall seconds from step end to step end (warm-up
left out) of all its turns together, their ratio to the plain script, and the phases of its last run.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from overhead import WARMUP, harness, plain

from grpo_lab.machine.gpus import describe, read_machine
from grpo_lab.store import folder as store
from grpo_lab.store import stats
from grpo_lab.store.folder import Run
from grpo_lab.store.measures import PHASES

LARGE = ["grpo.per_device_train_batch_size=64", "grpo.gradient_checkpointing=false"]
TEXTS, ROWS = ["vllm.fast_output=false"], ["passes=rows"]
LEVERS = {
    "off": [*TEXTS, *ROWS],
    "fast_output": ROWS,
    "tokens": TEXTS,
    "large": [*TEXTS, *ROWS, *LARGE],
    "large+tokens": [*TEXTS, *LARGE],
    "all-tokens": [*ROWS, *LARGE],
    "all": LARGE,
}
"""Side -> overrides."""
SIDES = ("plain", *LEVERS)


def measured(run: Run) -> dict[str, Any]:
    """What a side's row holds beside its wall seconds."""
    metrics = store.read_json(run.result)["metrics"]
    return {
        **{f"{phase}_s": metrics["time_s"][phase]["median"] for phase in PHASES},
        "generated_tokens_per_s": metrics["generated_tokens_per_s"]["median"],
        "tokens_per_s_per_gpu": metrics["tokens_per_s_per_gpu"]["median"],
        "mfu": (metrics["mfu"] or {}).get("median"),
        "padding_share": (metrics["padding_share"] or {}).get("median"),
        "logp_difference": (metrics["logp_difference"] or {}).get("median"),
        "peak_memory_gib": metrics["peak_memory_gib"]["trainer"],
        "startup_s": metrics["startup_s"]["trainer"],
    }


def turn(number: int, sides: list[str], overrides: list[str], folder: Path, walls: dict[str, list[float]]) -> Any:
    """One start of each side; returns the last run of each, the plain script's apart."""
    runs = {}
    for side in sorted(sides, key=lambda side: side == "plain"):  # the plain script reads the plan of the side `off`
        if side == "plain":
            walls[side] += plain(Run(folder / f"off-{number}"), folder / f"plain-{number}.json")[WARMUP:]
            continue
        runs[side] = harness(f"{side}-{number}", [*LEVERS[side], *overrides], folder)
        walls[side] += [row["step_time_s"] + row["pause_s"] for row in runs[side].rows()[WARMUP:]]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/levers"))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    sides = list(dict.fromkeys(["off", *asked.sides] if "plain" in asked.sides else asked.sides))
    hardware = {**describe(read_machine()), "command": shlex.join(["python", *sys.argv])}
    walls: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(asked.turns):
        runs = turn(number, sides, asked.overrides, asked.folder, walls)
        write(asked.out, walls, runs, {"turns": number + 1, **hardware})


def write(out: Path, walls: dict[str, list[float]], runs: dict[str, Run], hardware: dict[str, Any]) -> None:
    """The table so far, to a file and the terminal: after each turn, so that an interrupted session keeps its turns."""
    plain_s = statistics.median(walls["plain"]) if "plain" in walls else None
    rows = []
    for side, wall in walls.items():
        timing = stats.timing(wall)
        assert timing is not None
        ratio = plain_s / timing["median"] if plain_s else None
        facts = measured(runs[side]) if side in runs else {}
        times = {"step_s": timing["median"], "ci95": timing.get("ci95"), "n": timing["n"]}
        rows.append({"side": side, **times, "times_as_fast_as_plain": ratio, **facts, **hardware})
        print(f"{side:<12} {timing['median']:.3f} s a step (n={timing['n']})", f"{ratio:.2f}x" if ratio else "")
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=fields)
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
