"""`python -m grpo_lab.plan model=... hardware=h100-8`: every layout, whether it fits and why not, predicted speed.

`python -m grpo_lab.plan compare FOLDER|CSV ...` says how far predictions are off for what was measured;
`python -m grpo_lab.plan calibrate FOLDER|CSV ... [--out FILE]` fits the predictor's coefficients to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import exit_codes, run_app
from grpo_lab.config.jobs import FORMATS
from grpo_lab.config.places import CONF
from grpo_lab.predictor import answers

configuration.register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> None:
    with exit_codes():
        sys.stdout.write(answers.layouts(configuration.from_hydra(composed)))


def measured(command: str, arguments: list[str]) -> None:
    """Answer `compare` or `calibrate`."""
    parser = argparse.ArgumentParser(prog=f"python -m grpo_lab.plan {command}", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="folders with runs, CSV files of report")
    if command == "calibrate":
        parser.add_argument("--out", type=Path, default=Path("calibration.json"), help="then plan.calibration=FILE")
    else:
        parser.add_argument("--calibration", type=Path, help="default: the shipped one")
    asked = parser.parse_args(arguments)
    with exit_codes():
        if command == "calibrate":
            sys.stdout.write(answers.calibrated(asked.paths, asked.out))
        else:
            sys.stdout.write(answers.compared(asked.paths, asked.calibration))


def main() -> None:
    if sys.argv[1:2] in (["calibrate"], ["compare"]):
        measured(sys.argv[1], sys.argv[2:])
        sys.exit(0)
    flags = {f"--{name}": f"plan.format={name}" for name in FORMATS}
    sys.argv[1:] = [flags.get(argument, argument) for argument in sys.argv[1:]]
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
