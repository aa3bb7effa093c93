"""`fit=refuse|warn|off`: what cannot fit is known before anything is started."""

from __future__ import annotations

import dataclasses

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.cards import Card, card_of
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.modes import SERVER, memory_share
from grpo_lab.planner.train import Plan
from grpo_lab.predictor import verdict
from grpo_lab.predictor.memory import LEAKS_BELOW, STREAMS, leaks
from grpo_lab.predictor.parts import Layout
from grpo_lab.predictor.verdict import FITS, GIB, NO
from grpo_lab.predictor.workload import workload


def check(config: Config, plan: Plan, machine: Machine) -> tuple[str, ...]:
    """Warnings for the user. Silent on a machine without GPUs, and about a model whose shape is not known.

    Raises:
        RequestError: for what is certain not to fit, unless `fit=warn`.
    """
    return _judged(config, Layout.of(config, plan), machine) if plan.gpus else ()


def advice(config: Config, plan: Plan, machine: Machine) -> str:
    """To somebody whose run went out of memory: what was to be expected, and the way out where there is one."""
    if not plan.gpus:
        return ""
    expected = _expected(config, Layout.of(config, plan), machine)
    vllm = machine.versions.get("vllm", "")
    if plan.generation.served and leaks(vllm):
        left = f"leaves 2 GiB with the trainer at every sync, up to {STREAMS}, that only torch can use"
        expected += f"\nvLLM {vllm} {left}; {'.'.join(map(str, LEAKS_BELOW))} does not"
    return expected


def check_bench(config: Config, plan: BenchPlan, machine: Machine) -> tuple[str, ...]:
    """As `check`, of engines alone, without a trainer beside them."""
    return _judged(*_alone(config, plan), machine) if _on_gpus(plan) else ()


def advice_bench(config: Config, plan: BenchPlan, machine: Machine) -> str:
    return _expected(*_alone(config, plan), machine) if _on_gpus(plan) else ""


def _on_gpus(plan: BenchPlan) -> bool:
    return bool(plan.gpus) and plan.generation.engines


def _alone(config: Config, plan: BenchPlan) -> tuple[Config, Layout]:
    alone = dataclasses.replace(config.vllm, gpu_memory_utilization=memory_share(config), sleep=False)
    layout = Layout.generating(SERVER.name, plan.tp, plan.dp)
    return dataclasses.replace(config, vllm=alone), layout


def _expected(config: Config, layout: Layout, machine: Machine) -> str:
    try:
        work = workload(config)
    except RequestError:
        return ""
    card = smallest(machine)
    judgement = verdict.judge(work, layout, card, own_server=config.vllm.url is None)
    sizes = [f"{role} {need.total / GIB:.1f} GiB of {card.memory / GIB:.1f}" for role, need in judgement.needs.items()]
    answer = judgement.reason or f"fits, {', '.join(sizes)}"
    smaller = verdict.largest_batch(work, layout, card) if layout.trainer and judgement.kind != NO else 0
    answer += f"; grpo.per_device_train_batch_size={smaller} fits" if 0 < smaller < layout.per_device else ""
    return f"predicted: {answer}; python -m grpo_lab.plan shows what needs the memory"


def _judged(config: Config, layout: Layout, machine: Machine) -> tuple[str, ...]:
    if config.fit == "off":
        return ()
    try:
        work = workload(config)
    except RequestError:
        return ()
    judgement = verdict.judge(work, layout, smallest(machine), own_server=config.vllm.url is None)
    if judgement.kind == FITS:
        return ()
    if judgement.kind == NO and config.fit == "refuse":
        raise RequestError(f"{judgement.reason} (predicted; fit=warn starts it all the same)")
    return (f"{'will not fit' if judgement.kind == NO else 'may not fit'}: {judgement.reason}",)


def smallest(machine: Machine) -> Card:
    """The GPU with the least memory; of a card without a preset its memory is all that is known."""
    gpu = min(machine.gpus, key=lambda card: card.memory_gib)
    return card_of(gpu.name, gpu.memory_gib) or Card(
        gpu.name, gpu.memory_gib * 2**30, 0.0, 0.0, 0.0, 0.0, "as the driver says"
    )
