"""Published numbers beside the measured ones.

`published.csv`: columns that say which configuration (any of its axes, such as `model`, `vllm_mode`, `tp`, `load`,
`grpo.num_generations`; an empty cell asks for nothing), then `metric` (a column of table.csv), `value`, `unit` and
`source`.
A further column `over` makes the number a ratio: `vllm_mode=server tp=1` divides by the same configuration with these
axes instead; an empty value (`vllm.sleep=`) leaves an axis open.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.folder import experiment
from grpo_lab.reporter.tables import Cell, Table, measured
from grpo_lab.store import estimates, measures
from grpo_lab.store.estimates import Estimate

EXPERIMENTS = Path("experiments")
_SAID = ("metric", "value", "unit", "source")
_ALIASES = {"vllm": "vllm_mode", "vllm.mode": "vllm_mode", "vllm.tp": "tp", "vllm.dp": "dp", "model.name": "model"}
"""Names on the command line -> names in a result."""


@dataclass(frozen=True)
class Published:
    keys: Mapping[str, str]
    metric: str
    value: float
    unit: str
    source: str
    over: Mapping[str, str]
    """Axes of the configuration that it is divided by; empty for a plain number."""


def find(sweep: Path | None) -> Path | None:
    """published.csv of the experiment that a sweep was made by, beside the working directory or the package."""
    named = experiment(sweep) if sweep else None
    if not named:
        return None
    tops = (EXPERIMENTS, Path(__file__).resolve().parents[2] / EXPERIMENTS)
    return next((file for top in tops if (file := top / Path(named).name / "published.csv").is_file()), None)


def read(path: Path, kind: str) -> list[Published]:
    """Raises RequestError for a file that is missing or not in the format above."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"published={path}: cannot be read ({error})") from None
    return [_read(row, f"{path}, line {number}", kind) for number, row in enumerate(rows, 2)]


def _read(row: Mapping[str, str | None], where: str, kind: str) -> Published:
    missing = [key for key in _SAID if key not in row]
    if missing:
        raise RequestError(f"{where}: no column {', '.join(missing)}; wanted: row keys..., {', '.join(_SAID)}")
    if any(value is None for value in row.values()) or None in row:
        raise RequestError(f"{where}: not as many cells as the header has")
    text = {key: str(value).strip() for key, value in row.items()}
    known = [measure.name for measure in measures.columns(kind)]
    if text["metric"] not in known:
        raise RequestError(f"{where}: metric={text['metric']}: {nearest(text['metric'], known)}")
    try:
        value = float(text["value"])
    except ValueError:
        raise RequestError(f"{where}: value={text['value']}: not a number") from None
    keys = {_ALIASES.get(key, key): text[key] for key in text if text[key] and key not in (*_SAID, "over")}
    words = [word.partition("=") for word in text.get("over", "").split()]
    over = {_ALIASES.get(key, key): value for key, _, value in words}
    return Published(keys, text["metric"], value, text["unit"], text["source"], over)


def beside(several: Sequence[Published], configurations: Sequence[Configuration]) -> Table | None:
    """A row for each published number, those that were measured first; None where there are none."""
    first = sorted(several, key=lambda number: _measured(number, configurations)[0] is None)
    rows = [_row(number, configurations) for number in first]
    head = ["of", "metric", "published", "measured", "measured / published", "source"]
    caption = (
        "Other hardware, versions and settings unless the source says otherwise: directions compare, sizes rarely do."
    )
    return Table("Published beside measured", head, rows, caption, frozenset((2, 3, 4))) if rows else None


def _row(number: Published, configurations: Sequence[Configuration]) -> list[Cell]:
    found, why_not = _measured(number, configurations)
    share = Cell(f"{found.value / number.value:.2f}", number=True) if found and number.value else Cell("")
    value = f"{number.value:,g} {number.unit}".strip()
    of = _words(number.keys) + (f", over {_words({**number.keys, **number.over})}" if number.over else "")
    metric = f"ratio of {number.metric}" if number.over else number.metric
    cell = measured(found) if found else Cell(why_not)
    return [Cell(of), Cell(metric), Cell(value, number=True), cell, share, Cell(number.source)]


def _words(keys: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in keys.items() if value)


def _measured(number: Published, configurations: Sequence[Configuration]) -> tuple[Estimate | None, str]:
    """The estimate, or why there is none."""
    found, why_not = _one(number.keys, number.metric, configurations)
    if found is None or not number.over:
        return found, why_not
    under, why_not = _one({**number.keys, **number.over}, number.metric, configurations)
    return (estimates.ratio(found, under), "not measured") if under else (None, why_not)


def _one(keys: Mapping[str, str], metric: str, configurations: Sequence[Configuration]) -> tuple[Estimate | None, str]:
    fitting = [one for one in configurations if all(_same(one.asked.get(key), want) for key, want in keys.items())]
    have = [one for one in fitting if metric in one.estimates]
    if len(have) == 1:
        return have[0].estimates[metric], ""
    if have:
        return None, f"{len(have)} configurations fit: more keys are needed"
    unknown = [key for key in keys if not any(key in one.asked for one in configurations)]
    if unknown:
        return None, f"not measured: no run has '{unknown[0]}'"
    return None, next((one.failure for one in fitting if one.failure), "not measured")


def _same(have: object, want: str) -> bool:
    """An empty wish is met by anything; numbers are compared as numbers, `true` is YAML's."""
    if not want:
        return True
    if isinstance(have, bool) or have is None:
        return str(have).lower() == want.lower()
    try:
        return float(str(have)) == float(want)
    except ValueError:
        return str(have) == want
