"""What `python -m grpo_lab.plan` answers, as text: every layout predicted, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_lab.config.errors import RequestError
from grpo_lab.config.limits import check_limits
from grpo_lab.config.schema import Config
from grpo_lab.machine.clusters import cluster
from grpo_lab.machine.gpus import read_machine
from grpo_lab.predictor import calibration, table
from grpo_lab.predictor.candidates import judged


def layouts(config: Config) -> str:
    """Every layout of a run, in `plan.format`. Raises RequestError where nothing is predicted."""
    asked = config.plan
    check_limits(asked, "plan")
    known = calibration.load(Path(asked.calibration) if asked.calibration else None)
    here = read_machine(config.gpus if config.hardware == "auto" else 0)
    hardware = cluster(config.hardware, here, nodes=config.nodes)
    layouts = judged(config, hardware, known)
    if asked.format == "json":
        return table.as_json(layouts, hardware)
    if asked.format == "csv":
        return table.as_csv(layouts, hardware)
    return table.table(layouts, config, hardware, top=asked.top)


def calibrated(paths: Sequence[Path], out: Path) -> str:
    """Fit the coefficients to measurements, write them to `out`, and say how far predictions are off."""
    from grpo_lab.predictor import measurements

    fitted = calibration.calibrate(measurements.read(paths))
    calibration.save(fitted, out)
    return f"{table.errors(fitted)}written to {out}\n"


def compared(paths: Sequence[Path], coefficients: Path | None) -> str:
    """How far predictions are off for what was measured. `coefficients`: a calibration file, or the shipped one."""
    from grpo_lab.predictor import comparison, measurements

    known = calibration.load(coefficients).coefficients
    compared = [comparison.compare(measurement, known) for measurement in measurements.read(paths)]
    if not compared:
        raise RequestError("nothing there was measured on a card that is known")
    return comparison.table(compared)
