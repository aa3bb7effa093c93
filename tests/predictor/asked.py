"""Configs and workloads of the predictor's tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from grpo_lab.machine.cards import presets
from grpo_lab.machine.clusters import Cluster
from grpo_lab.predictor.parts import Layout
from grpo_lab.predictor.workload import Workload, workload
from tests.planner.test_plan import asked

LAYOUT = Layout("colocate", 1, 1, 1, "ddp", per_device=8, accumulation=8)


def work(*overrides: str, **changed: Any) -> Workload:
    return replace(_workload(*overrides), **changed)


@cache
def _workload(*overrides: str) -> Workload:
    return workload(asked("data=gsm8k", *overrides))


def layout(**changed: Any) -> Layout:
    return replace(LAYOUT, **changed)


def on(card: str, gpus: int = 8, nodes: int = 1) -> Cluster:
    return Cluster(presets()[card], gpus, nodes)
