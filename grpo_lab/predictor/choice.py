"""`layout=auto`: the layout that is predicted to be fastest, or the fastest of the best few by a short measurement."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.limits import check_limits
from grpo_lab.config.schema import Config, DistributedConfig, LayoutConfig
from grpo_lab.machine.clusters import cluster
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.layout import allowed_gpus
from grpo_lab.planner.modes import COLOCATE, OFF, SERVER
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import make_plan
from grpo_lab.predictor import calibration, verdict
from grpo_lab.predictor.candidates import Judged, judged
from grpo_lab.predictor.parts import Layout
from grpo_lab.store.folder import TRIALS, Run

STEPS = 3
"""Timed steps of one trial, after the warm-up."""
OBJECTIVE = "samples_per_s"
"""Of the whole run, so that layouts with other devices compare."""

Say = Callable[[str], None]
Trial = Callable[[Config], float | None]
"""Runs a config to its end; its OBJECTIVE, None if it failed."""


def settled(config: Config, machine: Machine, *, say: Say, trial: Trial | None = None) -> Config:
    """The config with a layout of its own. Without `trial` nothing is started: the choice on paper.

    Raises:
        RequestError: where no layout fits or runs, or none can be predicted.
    """
    asked = config.layout
    check_limits(asked, "layout")
    if asked.choose == "manual":
        return config
    layouts = _predicted(config, machine) if allowed_gpus(config, machine) else _on_cpu(config, machine)
    chosen = layouts[0].config
    if asked.measure and trial is not None:
        return _fastest(config, layouts[: asked.measure], say, trial)
    if layouts[0].phases is not None:
        say(f"layout=auto: {_margin(layouts)}")
    elif asked.measure:
        say(f"layout=auto: would time {'; '.join(layout.name for layout in layouts[: asked.measure])}")
    return replace(chosen, layout=config.layout)


def _predicted(config: Config, machine: Machine) -> list[Judged]:
    known = calibration.load(Path(config.plan.calibration) if config.plan.calibration else None)
    layouts = judged(config, cluster("auto", machine, nodes=config.nodes), known)
    runs = [layout for layout in layouts if layout.runs]
    if not runs:
        reason = next((layout.verdict.reason for layout in layouts if layout.verdict.needs), layouts[0].verdict.reason)
        raise RequestError(f"layout=auto: no layout of this run fits; {layouts[0].name}: {reason}")
    return runs


def _margin(layouts: list[Judged]) -> str:
    best, second = layouts[0], next(iter(layouts[1:]), None)
    margin = (
        f"{best.name}{f' {best.note}' if best.note else ''}, predicted {best.tokens_per_s_per_gpu:,.0f} tokens/s a GPU"
    )
    band = "" if best.band is None else f" (± {best.band:.0%})"
    if second is None:
        return f"{margin}{band}, the only one that runs"
    return f"{margin}{band}, {best.tokens_per_s_per_gpu / second.tokens_per_s_per_gpu - 1:.0%} before {second.name}"


def _on_cpu(config: Config, machine: Machine) -> list[Judged]:
    """What can be planned on this machine's cores, in no order of speed: nothing is predicted for processors."""
    if not config.layout.measure:
        raise RequestError(
            "layout=auto: no GPU here, and nothing is predicted for processors; layout.measure=3 times three layouts"
        )
    layouts, refused = [], ""
    for bare in _on_cores(machine.cores):
        vllm = replace(config.vllm, mode=bare.mode, tp=bare.tp, dp=bare.dp)
        own = None if bare.generation.colocated else bare.trainer
        candidate = replace(config, vllm=vllm, trainer_gpus=own, distributed=DistributedConfig())
        try:
            make_plan(candidate, machine, folder=Path("runs/plan"), ports=Ports(0, 0, 0))
        except RequestError as error:
            refused = refused or str(error)
            continue
        layouts.append(Judged(candidate, str(bare), verdict.Verdict(verdict.FITS, "", {}), layout=bare))
    if not layouts:
        raise RequestError(f"layout=auto: no layout of this run can be planned here; {refused}")
    return layouts


def _on_cores(cores: int) -> Iterator[Layout]:
    """As many processes as there are cores, one of them, and the other modes between."""
    sizes = sorted({1, cores})
    for count in sizes:
        yield Layout(OFF.name, 1, 1, count, "ddp", 0, 0)
    for count in sizes:
        yield Layout(COLOCATE.name, 1, count, count, "ddp", 0, 0)
    yield Layout(SERVER.name, 1, 1, 1, "ddp", 0, 0)


def _fastest(config: Config, layouts: list[Judged], say: Say, trial: Trial) -> Config:
    rates: dict[str, float] = {}
    for layout in layouts:
        short = trial_of(config, layout)
        say(f"layout=auto: timing {layout.name} over {STEPS} steps")
        rate = trial(short)
        shutil.rmtree(Run(Path(short.runs_dir) / str(short.name)).checkpoints, ignore_errors=True)
        if rate:
            rates[layout.name] = rate
    order = sorted(rates, key=lambda name: -rates[name])
    if not order:
        raise RequestError(
            f"layout=auto: none of the {len(layouts)} layouts that were timed ran; see {config.runs_dir}"
        )
    best = order[0]
    margin = (
        f", {rates[best] / rates[order[1]] - 1:.0%} before {order[1]}" if len(order) > 1 else ", the only one that ran"
    )
    say(f"layout=auto: {best}, measured {rates[best]:.3g} completions/s over {STEPS} steps{margin}")
    return replace(next(layout.config for layout in layouts if layout.name == best), layout=config.layout)


def trial_of(config: Config, layout: Judged) -> Config:
    """A short run of the layout, in a folder of its own that a repeated command finds again."""
    steps = config.warmup_steps + STEPS
    return replace(
        layout.config,
        layout=LayoutConfig(),
        grpo={**layout.config.grpo, "max_steps": steps, "save_steps": steps},
        eval=replace(config.eval, enabled=False),
        tracker=replace(config.tracker, kind="none"),
        objective=OBJECTIVE,
        runs_dir=str(Path(config.runs_dir) / TRIALS / configuration.identity(config)),
        name=layout.name.replace(" ", "-").replace(",", "").replace("=", ""),
    )
