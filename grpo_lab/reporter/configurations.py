"""Runs that differ in their seed only are one configuration; configurations of one workload are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lab.config.compose import NOT_IDENTITY
from grpo_lab.planner.modes import mode
from grpo_lab.reporter import context
from grpo_lab.store import estimates, measures
from grpo_lab.store.estimates import Estimate
from grpo_lab.store.folder import Row, Run

Axes = dict[str, Any]

_LAYOUT = ("vllm_mode", "tp", "dp")
_FIRST = ("model", "load", "gpus", "algorithm", *_LAYOUT)
COMMIT = "grpo_lab"
"""Axis of runs that were started by hand: the version of the harness, which a sweep has once."""
_ASIDE = (
    *(key for key in NOT_IDENTITY if key != "bench"),
    *("seed", "model.name", "vllm.mode", "vllm.tp", "vllm.dp", "algorithm.kind", "bench.loads"),
)
"""Keys of a config that do not tell configurations apart: they change no result, or the result says them itself."""
_WORK = (
    *("model", "load", "gpus", "data", "bench", "nodes"),
    *("grpo.max_completion_length", "grpo.num_generations", "grpo.generation_batch_size"),
)
"""What is to be done; everything else is a way to do it."""
_LOAD = ("prompts", "num_generations", "prompt_len", "completion_len", "concurrency")


@dataclass(frozen=True)
class Configuration:
    asked: Axes
    """All that was asked, flat, keys joined by dots; without the seed."""
    axes: Axes
    """The part of `asked` that tells the configurations of this report apart, the model always."""
    runs: tuple[Row, ...]
    estimates: Mapping[str, Estimate]
    """Name -> estimate over the finished runs."""

    @property
    def work(self) -> str:
        """What it had to do. Only configurations of one work are compared."""
        return _words({key: value for key, value in self.axes.items() if _is_work(key)})

    @property
    def task(self) -> str:
        """The work without the model that did it."""
        return _words({key: value for key, value in self.axes.items() if _is_work(key) and key != "model"})

    @property
    def way(self) -> str:
        """How it did it: what was varied, the layout where nothing was."""
        varied = _words({key: value for key, value in self.axes.items() if not _is_work(key)})
        return varied or self.layout

    @property
    def layout(self) -> str:
        """`colocate tp=1 dp=2`."""
        return _words({key: self.asked[key] for key in _LAYOUT if key in self.asked})

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.runs if row["status"] == "finished"]

    @property
    def folders(self) -> list[Run]:
        """Of the finished runs."""
        return [Run(Path(row["run"])) for row in self.finished]

    @property
    def failure(self) -> str | None:
        """The class of the failure where no run finished."""
        return None if self.folders else next(str(failure_of(row)[0]) for row in self.runs)


def failure_of(row: Row) -> tuple[str, str]:
    """Class and message of a run that did not finish."""
    failure = row.get("failure")
    failure = failure if isinstance(failure, Mapping) else {}
    return str(failure.get("class") or row["status"]), str(failure.get("message") or "no reason was left")


def per_load(rows: Iterable[Row]) -> list[Row]:
    """A row for each load of a bench run, its own metrics at the top level; training runs as they are."""
    return [part for row in rows for part in _loads(row)]


def _loads(row: Row) -> list[Row]:
    measured = row.get("loads")
    loads = measured if isinstance(measured, list) and measured else _asked_loads(row)
    return [
        {**row, "load": load.get("name"), "load_asked": load.get("load") or {}, **(load.get("metrics") or {})}
        for load in loads
        if isinstance(load, Mapping)
    ] or [row]


def _asked_loads(row: Row) -> list[Row]:
    """The loads that a bench run would have measured had it started; none where its config does not say."""
    bench = (row.get("config") or {}).get("bench")
    if row.get("kind") != "bench" or not isinstance(bench, Mapping):
        return []
    named = bench.get("loads")
    named = named if isinstance(named, Mapping) and named else {"default": {}}
    wanted = {name: {**bench, **(differs or {})} for name, differs in named.items()}
    return [{"name": name, "load": {key: settings.get(key) for key in _LOAD}} for name, settings in wanted.items()]


def group(rows: Sequence[Row]) -> list[Configuration]:
    """The configurations of comparable rows (see :mod:`grpo_lab.reporter.context`), in the order of their axes."""
    together: dict[str, list[Row]] = {}
    for row in _with_gpus(per_load(rows)):
        together.setdefault(json.dumps(asked(row), sort_keys=True, default=str), []).append(row)
    names = distinguishing([asked(several[0]) for several in together.values()])
    return sorted((_configuration(several, names) for several in together.values()), key=_place)


def _with_gpus(rows: Sequence[Row]) -> list[Row]:
    """An infeasible run was never given its GPUs: it stands beside the others where these all have one number."""
    numbers = {row.get("gpus") for row in rows if row["status"] != "infeasible"}
    same = numbers.pop() if len(numbers) == 1 else None
    unknown = [row["status"] == "infeasible" and not row.get("gpus") for row in rows]
    return [{**row, "gpus": same} if wanted else row for row, wanted in zip(rows, unknown, strict=True)]


def _place(configuration: Configuration) -> list[list[tuple[bool, float, str]]]:
    """Those of one work beside each other; numbers in the order of numbers, also within a name: 3b before 14b."""
    in_order = sorted(configuration.axes.items(), key=lambda axis: not _is_work(axis[0]))
    return [words_and_numbers(value) for _, value in in_order]


def words_and_numbers(value: object) -> list[tuple[bool, float, str]]:
    """What to sort by, so that 3b comes before 14b."""
    if isinstance(value, int | float):
        return [(False, float(value), "")]
    parts = re.split(r"(\d+(?:\.\d+)?)", str(value))
    return [(False, float(part), "") if place % 2 else (True, 0.0, part) for place, part in enumerate(parts)]


def _configuration(rows: Sequence[Row], names: Sequence[str]) -> Configuration:
    several = [estimates.read(row) for row in rows if row["status"] == "finished"]
    averaged = {
        measure.name: estimates.over_runs(measure, [each[measure.name] for each in several if measure.name in each])
        for measure in measures.columns(rows[0].get("kind", "train"))
        if any(measure.name in each for each in several)
    }
    everything = asked(rows[0])
    return Configuration(everything, {key: everything.get(key) for key in names}, tuple(rows), averaged)


def asked(row: Row) -> Axes:
    """What a row was asked to do, flat: what its result says, the load, and its config."""
    flat = {key: row[key] for key in _FIRST if row.get(key) is not None}
    flat |= {f"bench.{key}": value for key in _LOAD if (value := row.get("load_asked", {}).get(key)) is not None}
    if row.get("sweep", row) is None:
        flat[COMMIT] = _short(context.commit(row))
    config = _flat(row.get("config") or {})
    return {**{key: value for key, value in config.items() if not _is_among(key, _ASIDE)}, **flat}


def _short(commit: str) -> str:
    name, changed, _ = commit.partition("+")
    return name[:7] + changed


def distinguishing(several: Sequence[Axes]) -> list[str]:
    """Keys that together tell them apart: the model always, the layout as a whole where a part of it varies, of the
    others those that vary and are not settled by the keys before them (a model's path by its name, a least length by
    the length asked for)."""
    first = [key for key in _FIRST if any(key in asked for asked in several)]
    always = ("model", *(_LAYOUT if any(_varies(several, key) for key in _LAYOUT) else ()))
    names = [key for key in first if key in always or _varies(several, key)]
    others = {key for asked in several for key in asked} - set(first)
    for key in sorted(others, key=lambda key: (not _is_work(key), not key.startswith("grpo."), key)):
        known: dict[str, str] = {}
        settled = all(
            known.setdefault(str([asked.get(name) for name in names]), str(asked.get(key))) == str(asked.get(key))
            for asked in several
        )
        if not settled:
            names.append(key)
    return names


def _varies(several: Sequence[Axes], key: str) -> bool:
    return len({str(asked.get(key)) for asked in several}) > 1


def _is_work(key: str) -> bool:
    return _is_among(key, _WORK)


def _is_among(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Axes:
    flat: Axes = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _words(axes: Axes) -> str:
    """`colocate tp=1 dp=2 learning_rate=1e-06`; a model and a load stand for themselves."""
    words = [str(axes[key]) for key in ("model", "load") if axes.get(key) is not None]
    if axes.get("vllm_mode") is not None:
        words.append(mode(str(axes["vllm_mode"])).words(axes.get("tp"), axes.get("dp")))
    if axes.get("gpus"):
        words.append(f"{axes['gpus']} GPUs" if axes["gpus"] != 1 else "1 GPU")
    rest = {key: value for key, value in axes.items() if key not in ("model", "load", "gpus", *_LAYOUT)}
    rest = {key: value for key, value in rest.items() if key != COMMIT or value is not None}
    return " ".join([*words, *(f"{key.rpartition('.')[2]}={value}" for key, value in rest.items())])
