"""`python -m grpo_lab.bench`: how fast a layout generates. Nothing is trained.

Starts the engines of `vllm=server|colocate|off` once, sends every load of `bench` (warm-up, then measured rounds) and
writes result.json. The other keys, `--multirun` and the launchers are those of `python -m grpo_lab.train`.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from grpo_lab.conductor.bench import DEFAULTS, Bench
from grpo_lab.conductor.run import point
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import run_app
from grpo_lab.config.places import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> float | None:
    """Hydra's entry: one point of a sweep, or the only one. Returns the objective."""
    return point(Bench, composed)


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    configuration.register(DEFAULTS)
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
