"""What was measured beside what is predicted for it: tokens a second, memory, and whether it fits."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_lab.predictor import memory, verdict
from grpo_lab.predictor.calibration import Measurement
from grpo_lab.predictor.speed import Coefficients
from grpo_lab.store import markdown

CLOSE, CLOSE_GIB = 0.1, 0.5
"""A peak is met within this share of it, or within so many GiB."""
COLUMNS = ("measurement", "model", "layout", "tokens/s off by", "GiB predicted", "GiB measured", "predicted", "ran")


@dataclass(frozen=True)
class Compared:
    measured: Measurement
    speed: float | None
    """Error of the predicted tokens a second, relative to the measured; None where no speed was measured."""
    gib: Mapping[str, float]
    """Role -> predicted peak, of the roles that were measured, as it was measured: of the trainer what torch reserves,
    which leaves the CUDA context out, and what is left behind beside a server in."""
    verdict: str

    def met(self, role: str) -> bool:
        error = abs(self.gib[role] - self.measured.peaks[role])
        return error <= max(CLOSE * self.measured.peaks[role], CLOSE_GIB)


def compare(measured: Measurement, known: Coefficients) -> Compared:
    judgement = verdict.judge(measured.work, measured.layout, measured.card)
    left = memory.left_behind(measured.work, measured.layout, measured.vllm, measured.steps)
    reserved = next(iter(judgement.needs.values())).total - memory.CONTEXT + left
    gib = {
        role: (reserved if role == "trainer" else judgement.needs[role].total) / memory.GIB for role in measured.peaks
    }
    return Compared(measured, measured.error(known) if measured.seconds else None, gib, judgement.kind)


def table(compared: Sequence[Compared]) -> str:
    """A row for each, and what they come to."""
    return "\n".join([markdown.table(COLUMNS, map(_row, compared)), "", *_sum(compared)]) + "\n"


def _row(compared: Compared) -> list[str]:
    measured = compared.measured
    speed = "" if compared.speed is None else f"{compared.speed:+.1%}"
    ran = "out of memory" if measured.out_of_memory else "yes"
    sizes = [_sizes(compared.gib), _sizes(measured.peaks)]
    return [measured.name, measured.model, str(measured.layout), speed, *sizes, compared.verdict, ran]


def _sizes(gib: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {size:.1f}" for role, size in gib.items())


def _sum(several: Sequence[Compared]) -> list[str]:
    errors = [abs(row.speed) for row in several if row.speed is not None]
    peaks = [row.met(role) for row in several if not row.measured.out_of_memory for role in row.measured.peaks]
    failed = [row for row in several if row.measured.out_of_memory]
    lines = []
    if errors:
        lines.append(
            f"speed: {len(errors)} measured, median error {statistics.median(errors):.1%}, largest {max(errors):.1%}"
        )
    if peaks:
        lines.append(f"memory: {sum(peaks)} of {len(peaks)} peaks met within {CLOSE:.0%} or {CLOSE_GIB} GiB")
    if failed:
        fitting = sum(row.verdict == verdict.FITS for row in failed)
        lines.append(f"out of memory: {len(failed)}, of which {fitting} are predicted to fit")
    return lines
