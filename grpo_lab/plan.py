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

from grpo_lab.config import schema as configuration
from grpo_lab.config.cli import exit_codes, run_app
from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.schema import CONF, Config
from grpo_lab.machine.clusters import cluster
from grpo_lab.machine.gpus import read_machine
from grpo_lab.predictor import calibration, table
from grpo_lab.predictor.candidates import judged

configuration.register()

FORMATS = ("table", "json", "csv")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> None:
    with exit_codes():
        sys.stdout.write(answer(configuration.from_hydra(composed)))


def answer(config: Config) -> str:
    """Raises RequestError where nothing is predicted."""
    asked = config.plan
    if asked.format not in FORMATS:
        raise RequestError(f"plan.format={asked.format}: {nearest(asked.format, FORMATS)}")
    known = calibration.load(Path(asked.calibration) if asked.calibration else None)
    hardware = cluster(
        config.hardware, read_machine(config.gpus if config.hardware == "auto" else 0), nodes=config.nodes
    )
    found = judged(config, hardware, known)
    if asked.format == "json":
        return table.as_json(found, hardware)
    return (
        table.as_csv(found, hardware) if asked.format == "csv" else table.table(found, config, hardware, top=asked.top)
    )


def calibrate(arguments: list[str]) -> int:
    """Fit, write, and say how far predictions are off. Exit code."""
    from grpo_lab.predictor import measurements

    parser = argparse.ArgumentParser(prog="python -m grpo_lab.plan calibrate", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="folders with runs, CSV files of report")
    parser.add_argument("--out", type=Path, default=Path("calibration.json"), help="then plan.calibration=FILE")
    asked = parser.parse_args(arguments)
    with exit_codes():
        found = calibration.calibrate(measurements.read(asked.paths))
    calibration.save(found, asked.out)
    print(table.errors(found), end="")
    print(f"written to {asked.out}")
    return 0


def compare(arguments: list[str]) -> int:
    """Say how far predictions are off for what was measured. Exit code."""
    from grpo_lab.predictor import comparison, measurements

    parser = argparse.ArgumentParser(prog="python -m grpo_lab.plan compare", description=compare.__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="folders with runs, CSV files of report")
    parser.add_argument("--calibration", type=Path, help="unless given, the shipped one")
    asked = parser.parse_args(arguments)
    with exit_codes():
        known = calibration.load(asked.calibration).coefficients
        found = [comparison.compare(one, known) for one in measurements.read(asked.paths)]
        if not found:
            raise RequestError("nothing there was measured on a card that is known")
    print(comparison.table(found), end="")
    return 0


def main() -> None:
    commands = {"calibrate": calibrate, "compare": compare}
    if (command := commands.get("".join(sys.argv[1:2]))) is not None:
        sys.exit(command(sys.argv[2:]))
    flags = {f"--{name}": f"plan.format={name}" for name in FORMATS}
    sys.argv[1:] = [flags.get(argument, argument) for argument in sys.argv[1:]]
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
