"""`grpo_lab.bench` against `vllm bench serve`: the same load on the same server, in turn, in one session.

    python benchmarks/bench_against_vllm.py --out results.csv [--turns 5] -- model=qwen2.5-7b model.weights=random \\
        model.dtype=bfloat16 bench.prompts=256 bench.concurrency=64 bench.num_generations=1 \\
        bench.prompt_len=512 bench.completion_len=256

A model whose steps keep the GPU busy: with 0.5B the host sets the pace, and differs by a quarter from round to round.
Everything after `--` is an override of grpo_lab.bench; its first load counts. Three measurements take turns: `bench` as
it is, `streamed` (bench.timed_every=1: every token is a message, as `vllm bench serve` has it) and `vllm`. The ratio of
`streamed` to `vllm` says whether the two agree; that of `bench` to `streamed` what streaming costs the server.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from grpo_lab.conductor.bench import DEFAULTS
from grpo_lab.config import compose as configuration
from grpo_lab.config.places import CONF
from grpo_lab.machine.gpus import describe, read_machine
from grpo_lab.machine.ports import lease
from grpo_lab.planner.bench import BenchPlan, make_plan
from grpo_lab.planner.loads import Load
from grpo_lab.planner.parts import Ports
from grpo_lab.server.command import vllm_metadata
from grpo_lab.server.key import KEY
from grpo_lab.server.process import Server, vllm_server
from grpo_lab.store import folder as store
from grpo_lab.store import stats
from grpo_lab.store.folder import Run

START_S = 900.0
MEASUREMENTS = ("bench", "streamed", "vllm")


@contextlib.contextmanager
def started(overrides: Sequence[str], folder: Path) -> Iterator[tuple[BenchPlan, Server]]:
    """The server of grpo_lab.bench."""
    configuration.register(DEFAULTS)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = configuration.from_hydra(compose("config", [*overrides, "vllm=server"]))
    with lease(4) as free:
        plan = make_plan(config, read_machine(), folder=folder, ports=Ports(*free))
        if plan.prepare is not None:
            configuration.save(config, Run(folder).config)
            subprocess.run(plan.prepare.argv, check=True)
        assert plan.server is not None
        log = folder / "server.log"
        with vllm_server(plan.server, log=log, timeout_s=START_S, on_progress=lambda line: None) as server:
            yield plan, server


def ours(server: Server, overrides: Sequence[str], folder: Path, seed: int, *more: str) -> float:
    """Generated tokens a second of one measured round."""
    asked = [*overrides, *more, "vllm=server", f"vllm.url={server.url}", f"seed={seed}", "bench.repeats=1"]
    where = [f"runs_dir={folder}", f"name=bench-{seed}", "tracker=none", "resume=false"]
    subprocess.run([sys.executable, "-m", "grpo_lab.bench", *asked, *where], check=True, stdout=subprocess.DEVNULL)
    result = store.read_json(folder / f"bench-{seed}" / "result.json")
    return float(result["metrics"]["generated_tokens_per_s"]["median"])


def theirs(server: Server, plan: BenchPlan, load: Load, folder: Path, seed: int) -> float:
    """The output throughput that `vllm bench serve` reports of the same work."""
    out = folder / f"vllm-{seed}.json"
    body = {"n": load.num_generations, "min_p": 0.0}
    options = {
        "backend": "openai",
        "base-url": server.url,
        "endpoint": "/v1/completions",
        "model": plan.model_path,
        "served-model-name": server.info.served_name,
        "dataset-name": "random",
        "random-input-len": load.prompt_len,
        "random-output-len": load.completion_len,
        "num-prompts": load.prompts,
        "max-concurrency": load.in_flight,
        "num-warmups": load.in_flight,
        "temperature": 1.0,
        "top-p": 1.0,
        "top-k": 0,
        "seed": seed,
        "extra-body": json.dumps(body),
        "result-filename": out,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    argv = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", *words]
    with tempfile.TemporaryDirectory() as scratch, (folder / f"vllm-{seed}.log").open("w") as log:
        key = {"OPENAI_API_KEY": os.environ[KEY]}
        env = {**os.environ, **key, "CUDA_VISIBLE_DEVICES": "", **vllm_metadata(Path(scratch), {})}
        argv += ["--ignore-eos", "--disable-tqdm", "--save-result"]
        subprocess.run(argv, check=True, env=env, stdout=log, stderr=subprocess.STDOUT)
    found = json.loads(out.read_text())
    wanted = load.prompts * load.num_generations * load.longest_completion
    if found["completed"] != load.prompts or found["total_output_tokens"] != wanted:
        sys.exit(
            f"vllm bench serve made {found['total_output_tokens']} tokens, {wanted} were asked for; see {log.name}"
        )
    return float(found["output_throughput"])


def save(path: Path, speeds: Mapping[str, Sequence[float]], same: Mapping[str, Any]) -> None:
    """A row a turn, of those that there are."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=["turn", *speeds, *same])
        table.writeheader()
        for turn, values in enumerate(zip(*speeds.values(), strict=True)):
            table.writerow({"turn": turn, **dict(zip(speeds, values, strict=True)), **same})


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median of the ratios of the turns, with its interval, or range, over turns."""
    timing = stats.timing([one / other for one, other in zip(above, below, strict=True)])
    assert timing is not None
    spread = stats.spread(timing)
    return f"{timing['median']:.3f}" + (f" ({spread[0]} {spread[1][0]:.3f} to {spread[1][1]:.3f})" if spread else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_against_vllm"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    speeds: dict[str, list[float]] = {name: [] for name in MEASUREMENTS}
    hardware = {**describe(read_machine()), "command": shlex.join(["python", *sys.argv])}
    with started(asked.overrides, asked.folder) as (plan, server):
        load = plan.loads[0]
        if not (isinstance(load.prompt_len, int) and isinstance(load.completion_len, int)):
            sys.exit("lengths must be numbers: vllm bench serve draws them otherwise")
        for turn in range(asked.turns):
            speeds["bench"].append(ours(server, asked.overrides, asked.folder, 3 * turn))
            streamed = ours(server, asked.overrides, asked.folder, 3 * turn + 1, "bench.timed_every=1")
            speeds["streamed"].append(streamed)
            speeds["vllm"].append(theirs(server, plan, load, asked.folder, 3 * turn + 2))
            print(", ".join(f"{name} {values[-1]:,.0f}" for name, values in speeds.items()), flush=True)
            save(asked.out, speeds, {**load.asked(), **hardware})
    for above, below in (("streamed", "vllm"), ("bench", "vllm"), ("bench", "streamed")):
        print(f"{above} / {below}: {ratio(speeds[above], speeds[below])}, {asked.turns} turns, tokens/s")


if __name__ == "__main__":
    main()
