"""`python -m grpo_lab.train`: one training run, or with `--multirun` a sweep of them. It holds no GPU itself."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from grpo_lab.conductor.run import point
from grpo_lab.conductor.train import Train
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import run_app
from grpo_lab.config.places import CONF

configuration.register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> float | None:
    """Hydra's entry: one point of a sweep, or the only one. Returns the objective."""
    return point(Train, composed)


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
