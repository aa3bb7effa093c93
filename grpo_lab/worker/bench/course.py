"""A bench from its first round to its last, in each measuring process."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import AutoTokenizer

from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import DiskFull, full_disk
from grpo_lab.machine.logs import OUT_OF_MEMORY
from grpo_lab.machine.power import metered
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.loads import Load, draw, loads_of
from grpo_lab.store import records, tracker
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Env, Failure, Outcome, Progress
from grpo_lab.store.rounds import BenchFailed, Generator, check_engines, row_of


def bench(folder: Path, *, started: float) -> None:
    """Measure to the end. An exception leaves its class in outcome.json on the way out, its traceback in the log."""
    run = Run(folder)
    sys.excepthook = functools.partial(_report, run)
    config, plan = configuration.load(run.config), records.must_read(run.plan, BenchPlan)
    vocabulary = ordinary_tokens(config, plan.model_path)
    generator = _generator(config, plan)
    if generator.tells:
        startup_s = None if plan.generation.served else time.perf_counter() - started
        records.write(run.outcome, Outcome(startup_s=startup_s, kv_cache_tokens=generator.kv_cache_tokens))
    log = _open_tracker(config, run, tells=generator.tells)
    finished = False
    try:
        _rounds(run, config, plan, vocabulary, generator, log)
        finished = True
    finally:
        log.finish({}, exit_code=0 if finished else 1)
    if generator.tells:
        run.update_outcome(finished=True, look=log.how_to_look())


def _report(run: Run, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last word of a failing process; of several the first one tells."""
    sys.__excepthook__(kind, error, trace)
    if run.read_outcome().failure is None:
        error = full_disk(error, run.folder) or error
        if isinstance(error, DiskFull):
            run.ballast.unlink(missing_ok=True)
        failure = Failure(_class_of(error), str(error) or kind.__name__, str(run.worker_log))
        run.update_outcome(failure=failure)


def _class_of(error: BaseException) -> str:
    if isinstance(error, DiskFull):
        return "disk_full"
    if OUT_OF_MEMORY.search(str(error)):
        return "oom"
    if isinstance(error, BenchFailed | RequestError):
        return "error"
    return "server_died" if getattr(error, "of_server", False) else "worker_crash"


def ordinary_tokens(config: Config, model_path: str) -> list[int]:
    """Ids that stand for text: no special or added token, nothing beyond the tokenizer's own vocabulary."""
    revision = config.model.revision if model_path == config.model.path else None
    tokenizer = AutoTokenizer.from_pretrained(
        model_path, revision=revision, trust_remote_code=config.model.trust_remote_code
    )
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))


def _generator(config: Config, plan: BenchPlan) -> Generator:
    """Imported here: each needs packages that the others do not."""
    module = import_module(f"grpo_lab.worker.bench.{plan.generation.bench}")
    generator: Generator = module.generator(config, plan)
    return generator


def _rounds(
    run: Run, config: Config, plan: BenchPlan, vocabulary: list[int], generator: Generator, log: tracker.Tracker
) -> None:
    loads, bench = loads_of(config.bench), config.bench
    turns = [(number, load, turn) for number, load in enumerate(loads) for turn in range(bench.warmup + bench.repeats)]
    for step, (number, load, turn) in enumerate(turns, 1):
        if generator.tells:
            _show(run, load, turn, bench.warmup + bench.repeats)
        requests = draw(load, vocabulary, seed=config.seed, number=number, turn=turn)
        with metered([*plan.trainer_gpus, *plan.server_gpus] if generator.tells else []) as meter:
            measured = generator.measure(requests, load)
        if generator.tells:
            check_engines(measured.engines, plan.dp, measured.tokens)
            row = {"step": step, **row_of(load, turn, bench.warmup, measured, meter, plan.generating_devices)}
            run.append_metrics(row)
            log.log({key: value for key, value in row.items() if not isinstance(value, dict)}, step=step)


def _show(run: Run, load: Load, turn: int, of: int) -> None:
    records.write(run.progress, Progress(f"load {load.name}, round {turn + 1} of {of}"))


def _open_tracker(config: Config, run: Run, *, tells: bool) -> tracker.Tracker:
    settings = config.tracker if tells else dataclasses.replace(config.tracker, kind="none")
    asked: dict[str, Any] = dataclasses.asdict(config)
    return tracker.open_tracker(
        settings,
        folder=run.folder,
        run_id=records.must_read(run.env, Env).run_id,
        name=run.folder.name,
        group=config.sweep.name,
        tags=["bench", config.model.name, config.vllm.mode, *config.sweep.overrides],
        config={key: asked[key] for key in ("model", "vllm", "bench", "seed")},
    )
