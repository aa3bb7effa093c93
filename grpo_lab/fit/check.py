"""`fit=refuse|warn|off`: what cannot fit is known before anything is started."""

from __future__ import annotations

from grpo_lab.config import Config
from grpo_lab.errors import RequestError, nearest
from grpo_lab.fit import verdict
from grpo_lab.fit.hardware import Card, card_of
from grpo_lab.fit.parts import Layout
from grpo_lab.fit.verdict import FITS, NO
from grpo_lab.fit.workload import workload
from grpo_lab.machine import Machine
from grpo_lab.plan import Plan

CHOICES = ("refuse", "warn", "off")


def check(config: Config, plan: Plan, machine: Machine, *, training: bool = True) -> tuple[str, ...]:
    """Warnings for the user. Silent on a machine without GPUs, and about a model whose shape is not known.

    `training`: false for a server alone, without a trainer beside it.

    Raises:
        RequestError: for what is certain not to fit, unless `fit=warn`.
    """
    if config.fit not in CHOICES:
        raise RequestError(f"fit={config.fit}: {nearest(config.fit, CHOICES)}")
    if config.fit == "off" or not plan.gpus:
        return ()
    try:
        work = workload(config)
    except RequestError:
        return ()
    layout = Layout.of(config, plan)
    if not training:
        layout = Layout(layout.mode, layout.tp, layout.dp, 0, "ddp", 0, 0, layout.nodes)
    found = verdict.judge(work, layout, smallest(machine), own_server=config.vllm.url is None)
    if found.kind == FITS:
        return ()
    if found.kind == NO and config.fit == "refuse":
        raise RequestError(f"{found.reason} (predicted; fit=warn starts it all the same)")
    return (f"{'will not fit' if found.kind == NO else 'may not fit'}: {found.reason}",)


def smallest(machine: Machine) -> Card:
    """The GPU with the least memory; of a card without a preset its memory is all that is known."""
    gpu = min(machine.gpus, key=lambda one: one.memory_gib)
    return card_of(gpu) or Card(gpu.name, gpu.memory_gib * 2**30, 0.0, 0.0, 0.0, 0.0, "as the driver says")
