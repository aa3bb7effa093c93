"""Coefficients from measurements, and how far predictions with them were off.

A fit is a regularised least squares on logarithms: of measured phases, each weighted by its share of the step, and of
the coefficients, which stay near their defaults unless measurements pull. So a handful of points gives a usable answer.
Hosts differ in speed by more than cards of one kind do, so measurements of several hosts are fitted with a factor for
each, on all host times, around 1; predictions are for a host of factor 1, since nobody knows that of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.cards import Card
from grpo_lab.predictor import speed
from grpo_lab.predictor.parts import Layout
from grpo_lab.predictor.speed import Coefficients
from grpo_lab.predictor.workload import Workload
from grpo_lab.store import folder as store

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "calibration.json"
NOISE, PRIOR, HOSTS = 0.1, 0.5, 0.2
"""Standard deviations, as logarithms: of a measured phase, of a coefficient around its default, and of how slow hosts
are."""
ROUNDS, ENOUGH = 20, 1e-3
"""Of the fit: most steps, and the step below which it has arrived."""


@dataclass(frozen=True)
class Measurement:
    """One run, or one load of a benchmark."""

    name: str
    model: str
    work: Workload
    layout: Layout
    card: Card
    seconds: Mapping[str, float]
    """Phase -> median of a step; of a benchmark only `generate`."""
    source: str = ""
    peaks: Mapping[str, float] = field(default_factory=dict)
    """Role -> GiB; of the trainer what torch reserved."""
    out_of_memory: bool = False
    """It failed for want of GPU memory; then, and where a run ended within its warm-up, `seconds` is empty."""
    host: str = ""
    """The same for all measurements of one host, whatever it is."""
    vllm: str = ""
    """Its version, where that is known."""
    steps: int = 0
    """Of training, and so transfers of weights."""

    def predicted(self, known: Coefficients) -> dict[str, float]:
        """The same phases."""
        if set(self.seconds) == {"generate"} and self.layout.generation.engines:
            return {"generate": speed.generation(self.work, self.layout, self.card, known)}
        phases = asdict(speed.phases(self.work, self.layout, self.card, known))
        return {phase: phases[phase] for phase in self.seconds}

    def error(self, known: Coefficients) -> float:
        """Of the predicted tokens a second, relative to the measured."""
        return sum(self.seconds.values()) / sum(self.predicted(known).values()) - 1


@dataclass(frozen=True)
class Calibration:
    coefficients: Coefficients = field(default_factory=Coefficients)
    spread: float | None = None
    """Half width of the 95% band of predicted rates, as a logarithm; None: not known."""
    covered: tuple[tuple[str, str], ...] = ()
    """Pairs of card and mode that were measured."""
    points: tuple[Mapping[str, Any], ...] = ()
    hosts: Mapping[str, float] = field(default_factory=dict)
    """Host -> how slow it is; of several."""

    def band(self, card: str, mode: str) -> float | None:
        if self.spread is None or (card, mode) not in self.covered:
            return None
        return math.exp(self.spread) - 1


def calibrate(measurements: Sequence[Measurement]) -> Calibration:
    """From those whose speed was measured. Raises RequestError where there is none."""
    measurements = [point for point in measurements if point.seconds]
    if not measurements:
        raise RequestError("no finished measurement to calibrate with")
    (known, hosts), left_out = fit(measurements), leave_one_out(measurements)
    return Calibration(
        known,
        _spread(list(left_out.values())) if left_out else None,
        tuple(sorted({(point.card.name, point.layout.mode) for point in measurements})),
        tuple(
            {
                "name": point.name,
                "model": point.model,
                "card": point.card.name,
                "layout": str(point.layout),
                "source": point.source,
                "error": round(point.error(known), 4),
                "error_without_this_model": round(left_out[point.name], 4) if point.name in left_out else None,
            }
            for point in measurements
        ),
        hosts,
    )


def _spread(errors: Sequence[float]) -> float:
    """Of predictions for a model that was not measured, twice their root mean square."""
    return 2 * math.sqrt(math.fsum(math.log1p(error) ** 2 for error in errors) / len(errors))


def leave_one_out(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Name -> relative error of the predicted tokens a second where the fit saw nothing of that model. Empty if all are
    of one model."""
    models = {point.model for point in measurements}
    errors: dict[str, float] = {}
    for model in models if len(models) > 1 else ():
        known, _ = fit([point for point in measurements if point.model != model])
        errors |= {point.name: point.error(known) for point in measurements if point.model == model}
    return errors


def fit(measurements: Sequence[Measurement]) -> tuple[Coefficients, dict[str, float]]:
    """Coefficients, and how slow each host is if there are several. Gauss-Newton on logarithms, each step halved until
    it helps."""
    import numpy as np

    names = [field.name for field in fields(Coefficients)]
    hosts = sorted({point.host for point in measurements})
    hosts = hosts if len(hosts) > 1 else []
    origin = np.log([*asdict(Coefficients()).values(), *(1.0 for _ in hosts)])
    width = np.array([*(PRIOR for _ in names), *(HOSTS for _ in hosts)])
    most = np.array([1.0 if name in speed.SHARES else np.inf for name in names])

    def read(place: Any) -> tuple[Coefficients, dict[str, float]]:
        values = np.minimum(np.exp(place[: len(names)]), most).tolist()
        factors = np.exp(place[len(names) :]).tolist()
        return Coefficients(*values), dict(zip(hosts, factors, strict=True))

    def residuals(place: Any) -> Any:
        known, slow = read(place)
        of_host = {point.host: known.on_host(slow.get(point.host, 1.0)) for point in measurements}
        off = [error for point in measurements for error in _residuals(point, of_host[point.host])]
        return np.array([*off, *((place - origin) / width)])

    place, now = origin.copy(), residuals(origin)
    for _ in range(ROUNDS):
        slopes = np.array([(residuals(place + 1e-4 * axis) - now) / 1e-4 for axis in np.eye(len(origin))]).T
        step = np.linalg.lstsq(slopes, -now, rcond=None)[0]
        while (then := residuals(place + step)) @ then > now @ now and np.abs(step).max() > ENOUGH:
            step = step / 2
        if np.abs(step).max() <= ENOUGH:
            break
        place, now = place + step, then
    return read(place)


def _residuals(measurement: Measurement, known: Coefficients) -> Iterator[float]:
    predicted, whole = measurement.predicted(known), sum(measurement.seconds.values())
    for phase, seconds in measurement.seconds.items():
        if seconds > 0 and predicted[phase] > 0:
            yield math.sqrt(seconds / whole) * math.log(predicted[phase] / seconds) / NOISE


def load(path: Path | None = None) -> Calibration:
    """Raises RequestError for a file that is not there, or of a version with other coefficients."""
    row = store.read_json(path or SHIPPED)
    if row is None:
        raise RequestError(f"plan.calibration={path}: no such file; python -m grpo_lab.plan calibrate writes one")
    if set(row["coefficients"]) != {field.name for field in fields(Coefficients)}:
        raise RequestError(f"plan.calibration={path}: made by another version; python -m grpo_lab.plan calibrate again")
    covered = tuple((str(card), str(mode)) for card, mode in row["covered"])
    return Calibration(Coefficients(**row["coefficients"]), row["spread"], covered, tuple(row["points"]), row["hosts"])


def save(calibration: Calibration, path: Path) -> None:
    row = asdict(calibration)
    for numbers in ("coefficients", "hosts"):
        row[numbers] = {name: float(f"{value:.5g}") for name, value in row[numbers].items()}
    store.write_json(path, row)
