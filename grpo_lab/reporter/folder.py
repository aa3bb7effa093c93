"""What lies below the folders of a report: whole results as rows, and what was left out with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo_lab.config.errors import RequestError
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Row, Run, Sweep
from grpo_lab.store.measures import MEASURES
from grpo_lab.store.records import FrozenSweep

STATUSES = ("finished", "failed", "infeasible")


@dataclass(frozen=True)
class LeftOut:
    run: str
    why: str


@dataclass
class Found:
    rows: list[Row] = field(default_factory=list)
    """As :func:`store.load` gives them, and `kind`, `sweep` (its folder or None), `config` (nested, or empty)."""
    left_out: list[LeftOut] = field(default_factory=list)
    aside: list[Row] = field(default_factory=list)
    """Whole results that do not belong in one table with `rows`, each with its reason as `left_out`."""


class _Unusable(ValueError):
    """Why a run cannot be reported."""


def find(folders: Sequence[Path]) -> Found:
    """Every result at or below the folders. Raises RequestError if there is none that can be used."""
    found = Found()
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"{folder}: no such folder; the report wants the folder of a run or of a sweep")
        for run in store.runs(folder):
            try:
                found.rows.append(_row(run))
            except _Unusable as error:
                found.left_out.append(LeftOut(name(run.folder, folders), str(error)))
        found.left_out += [LeftOut(name(run, folders), "no result yet (no result.json)") for run in _unended(folder)]
    if not found.rows:
        why = f": {found.left_out[0].run}: {found.left_out[0].why}" if found.left_out else ""
        raise RequestError(f"no result.json that can be used below {', '.join(map(str, folders))}{why}")
    return found


def name(run: Path, folders: Sequence[Path]) -> str:
    """A run as seen from the folder that was asked for; a single run by its own name."""
    for folder in folders:
        if run != folder and run.is_relative_to(folder):
            return str(run.relative_to(folder))
    return run.absolute().name


def _row(run: Run) -> Row:
    """Raises _Unusable with what is wrong with the run's files."""
    try:
        row = store.row(run)
    except RequestError as error:
        raise _Unusable(str(error).removeprefix(f"{run.folder}/")) from None
    except (ValueError, TypeError) as error:  # not JSON, not text, or not an object
        raise _Unusable(f"result.json or env.json is damaged ({error})") from None
    if wrong := [key for key in ("tp", "dp") if not isinstance(row.get(key, 1), int)]:
        raise _Unusable(f"result.json has {wrong[0]}={row[wrong[0]]!r}: not a whole number")
    if row.get("status") not in STATUSES:
        raise _Unusable(f"result.json has the status {row.get('status')!r}; valid: {', '.join(STATUSES)}")
    row.setdefault("kind", "train")
    if row["kind"] not in MEASURES:
        raise _Unusable(f"result.json is of the kind {row['kind']!r}; valid: {', '.join(MEASURES)}")
    return row | {"sweep": sweep_of(run.folder), "config": _config(run)}


def _config(run: Run) -> Row:
    """What was asked; empty where the file is not there, as in results that were copied without it."""
    if not run.config.is_file():
        return {}
    try:
        asked = yaml.load(run.config.read_text(encoding="utf-8"), Loader=_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _Unusable(f"config.yaml is damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(asked, dict):
        raise _Unusable("config.yaml is damaged (not a mapping)")
    return asked


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C is ten times as fast, where PyYAML was built with it."""


def sweep_of(run: Path) -> Path | None:
    """The nearest folder around a run that holds a sweep."""
    return next((parent for parent in run.absolute().parents if Sweep(parent).points.is_file()), None)


def experiment(folder: Path) -> str | None:
    """`experiment=<name>` of the command that made a sweep; None where it had none, or cannot be read."""
    words = str(frozen(folder).command).split()
    return next((word.partition("=")[2] for word in words if word.startswith("experiment=")), None)


def frozen(folder: Path) -> FrozenSweep:
    """The sweep of a folder; without points where there is none, or a damaged one: its runs speak for themselves."""
    try:
        return records.read(Sweep(folder).points, FrozenSweep) or FrozenSweep()
    except ValueError:
        return FrozenSweep()


def _unended(folder: Path) -> list[Path]:
    """Runs that were begun, and points of the sweep, without a result."""
    begun = {path.parent for path in folder.rglob(Run(folder).plan.name) if store.is_run(path.relative_to(folder))}
    points = {Sweep(folder).run(point.name).folder for point in frozen(folder).points}
    return sorted(run for run in begun | points if not Run(run).result.is_file())
