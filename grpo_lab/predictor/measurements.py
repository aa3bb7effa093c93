"""Measurements from what runs leave: result.json of `train` and `bench`, and the tables that `report` makes of them."""

from __future__ import annotations

import csv
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config
from grpo_lab.machine.cards import Card, card_of, presets
from grpo_lab.machine.clusters import Cluster
from grpo_lab.planner.parts import Batch, Ports
from grpo_lab.planner.train import make_plan, whole
from grpo_lab.predictor.calibration import Measurement
from grpo_lab.predictor.filling import applied
from grpo_lab.predictor.parts import PREDICTED, Layout
from grpo_lab.predictor.workload import workload
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Env, Result

OOM = "oom"
"""Class of a failure, in result.json and in tables."""


def read(paths: Iterable[Path]) -> list[Measurement]:
    """Of folders with runs below them, and of CSV files, on a card that is known: what finished, and what went out of
    GPU memory. Each is taken to be of one host.

    Raises:
        RequestError: for a path that is neither.
    """
    return [replace(measurement, host=str(path)) for path in paths for measurement in _of(path)]


def _of(path: Path) -> Sequence[Measurement]:
    if path.is_dir():
        return [measurement for file in sorted(path.rglob("result.json")) for measurement in from_run(Run(file.parent))]
    if path.suffix == ".csv" and path.is_file():
        return from_csv(path)
    raise RequestError(f"{path}: neither a folder with runs nor a CSV file")


def from_run(run: Run) -> Iterator[Measurement]:
    result, env = records.must_read(run.result, Result), records.read(run.env, Env) or Env()
    for measurement in _of_result(run, result, env):
        yield replace(measurement, vllm=env.versions.get("vllm", ""), steps=result.steps)


def _of_result(run: Run, result: Result, env: Env) -> Iterator[Measurement]:
    card = _card(env.gpus, env.gpu_memory_gib)
    finished = result.status == "finished"
    failed = result.failure is not None and result.failure.class_ == OOM
    if not (finished or failed) or card is None or not run.config.is_file():
        return
    config = configuration.load(run.config)
    if result.kind == "bench":
        yield from from_bench(run.folder, result, config, card) if finished else ()
        return
    written = store.read_json(run.plan)
    config = applied(config, written.get("chosen") or {})
    metrics, batch = result.metrics, records.build(Batch, written["batch"], run.plan)
    seconds = {phase: (metrics["time_s"][phase] or {}).get("median", 0.0) for phase in PREDICTED}
    rate = (metrics["generated_tokens_per_s"] or {}).get("median")
    peaks = {role: gib for role, gib in (metrics.get("peak_memory_gib") or {}).items() if gib}
    layout = Layout(
        result.vllm_mode,
        result.tp,
        result.dp,
        batch.processes,
        whole(config).distributed.kind,
        batch.per_device,
        batch.accumulation,
        config.nodes,
    )
    prompt = (metrics.get("prompt_tokens") or {}).get("value")
    if rate and finished:
        yield _measured(run.folder.name, config, layout, card, seconds, rate, str(run.folder), peaks, prompt)
    else:
        yield _as_asked(run.folder.name, config, layout, card, str(run.folder), peaks, failed)


def from_bench(folder: Path, result: Result, config: Config, card: Card) -> Iterator[Measurement]:
    """One measurement a load."""
    layout = Layout.generating(result.vllm_mode, result.tp, result.dp, config.nodes)
    for load in result.loads or ():
        rate = load["metrics"]["generated_tokens_per_s"]["median"]
        yield _of_load(f"{folder.name}/{load['name']}", config, layout, load["load"], rate, card, str(folder))


def from_csv(path: Path) -> list[Measurement]:
    """Rows of `report --csv`, or of a table with its columns; `command` (or `overrides`) says what was asked.

    Raises:
        RequestError: for a row of layout=auto, whose layout only the run's folder holds.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if _failed(row) or (row.get("status") or "finished") == "finished"]
    configs = _composed([_overrides(row) for row in rows])
    return [
        replace(measurement, vllm=row.get("vllm") or "", steps=int(config.grpo["max_steps"]))
        for row, config in zip(rows, configs, strict=True)
        if (measurement := _of_row(row, config, str(path)))
    ]


def _failed(row: dict[str, str]) -> bool:
    return row.get("failure") == OOM


def _peaks(row: dict[str, str]) -> dict[str, float]:
    return {role: float(row[key]) for role in ("trainer", "server") if row.get(key := f"peak_memory_gib_{role}")}


def _card_of_row(row: dict[str, str]) -> Card | None:
    """Of a preset's name, of the cards' names, or of `2 x NVIDIA H200`, as report writes them."""
    names = [name.strip().partition(" x ")[2] or name.strip() for name in row["hardware"].split(",")]
    return presets().get(row["hardware"]) or _card(names, None)


def _layout(row: dict[str, str], config: Config, card: Card) -> Layout:
    machine = Cluster(card, int(row["gpus"])).as_machine()
    return Layout.of(config, make_plan(config, machine, folder=Path("runs/plan"), ports=Ports(0, 0, 0)))


def _of_row(row: dict[str, str], config: Config, source: str) -> Measurement | None:
    card, bench = _card_of_row(row), row.get("kind") == "bench"
    if card is None or (bench and _failed(row)):
        return None
    if _failed(row) or not row.get("generated_tokens_per_s"):
        return _as_asked(row["run"], config, _layout(row, config, card), card, source, _peaks(row), _failed(row))
    seconds = {phase: float(row[f"{phase}_s"]) for phase in PREDICTED if row.get(f"{phase}_s")}
    peaks, rate = _peaks(row), float(row["generated_tokens_per_s"])
    if bench:
        load = {key.removeprefix("load_"): value for key, value in row.items() if key.startswith("load_")}
        layout = Layout.generating(row["vllm_mode"], int(row["tp"]), int(row["dp"]), config.nodes)
        return _of_load(f"{row['run']}/{row['load']}", config, layout, load, rate, card, source)
    if set(seconds) <= {"generate"}:
        work = workload(config)
        layout = Layout.generating(config.vllm.mode, config.vllm.tp, config.vllm.dp)
        whole = {"generate": work.completions * work.completion / rate}
        return Measurement(row["run"], config.model.name, work, layout, card, whole, source, peaks)
    prompt = float(row["prompt_tokens"]) if row.get("prompt_tokens") else None
    return _measured(row["run"], config, _layout(row, config, card), card, seconds, rate, source, peaks, prompt)


def _of_load(name: str, config: Config, layout: Layout, load: Row, rate: float, card: Card, source: str) -> Measurement:
    """Of a bench: the time that the load's completions would take at the measured rate, in tokens a second."""
    keys = ("prompts", "num_generations", "prompt_len", "completion_len")
    prompts, each, prompt, completion = (_mean(load[key]) for key in keys)
    grpo = {**config.grpo, "generation_batch_size": prompts * each, "num_generations": each}
    work = workload(replace(config, grpo=grpo), prompt=prompt, completion=completion)
    if load.get("concurrency"):  # for each engine, as the loads of bench are shared evenly
        work = replace(work, max_num_seqs=max(1, int(load["concurrency"]) // layout.dp))
    seconds = {"generate": prompts * each * completion / rate}
    return Measurement(name, config.model.name, work, layout, card, seconds, source)


def _mean(number: Any) -> int:
    """Of a number, or of the two ends between which lengths were drawn, as JSON or CSV have them."""
    return round(statistics.fmean(int(end) for end in re.findall(r"\d+", str(number))))


def _as_asked(
    name: str, config: Config, layout: Layout, card: Card, source: str, peaks: dict[str, float], failed: bool
) -> Measurement:
    """Of a run without a rate: it went out of memory, or ended within its warm-up. Completions are taken as long as
    they may be."""
    return Measurement(name, config.model.name, workload(config), layout, card, {}, source, peaks, failed)


def _measured(
    name: str,
    config: Config,
    layout: Layout,
    card: Card,
    seconds: dict[str, float],
    rate: float,
    source: str,
    peaks: dict[str, float],
    prompt: float | None,
) -> Measurement:
    """With the prompts' mean length, where it was counted, and the completions', which is what rate and time of
    generation say."""
    mean = round(rate * seconds["generate"] / int(config.grpo["generation_batch_size"]))
    work = workload(config, prompt=round(prompt) if prompt else None, completion=max(1, mean))
    return Measurement(name, config.model.name, work, layout, card, seconds, source, peaks)


def _overrides(row: dict[str, str]) -> list[str]:
    asked = row.get("overrides")
    words = shlex.split(asked) if asked else shlex.split(row["command"])[3:]  # python -m grpo_lab.train
    if "layout=auto" in words:
        raise RequestError(f"{row['run']}: layout=auto, so the table does not say what ran; give the run's folder")
    return words


def _composed(asked: Iterable[Sequence[str]]) -> list[Config]:
    configuration.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [configuration.from_hydra(compose("config", list(overrides))) for overrides in asked]


def _card(names: Sequence[str], memory_gib: Any) -> Card | None:
    """None for GPUs that are not known, and where there are none. Tables do not hold the memory; then the name says."""
    return card_of(names[0], memory_gib) if names else None
