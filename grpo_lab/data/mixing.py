"""Several data sets in one stream."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-untyped]
from hydra.utils import get_method


def mix(
    split: str, parts: Mapping[str, Mapping[str, Any]], seed: int, stopping_strategy: str, drop: Sequence[str]
) -> datasets.Dataset:
    """See :func:`grpo_lab.data.mix`. A part of weight 0 is not loaded."""
    weights = {name: _weight(name, part) for name, part in parts.items()}
    drawn = [name for name, weight in weights.items() if weight > 0]
    if not drawn:
        raise ValueError("parts has no data set with a weight; +data@data.parts.gsm8k=gsm8k adds one")
    rows = {name: _part(name, split, parts[name], drop) for name in drawn}
    _check_types(rows)
    total = sum(weights.values())
    return datasets.interleave_datasets(
        list(rows.values()),
        probabilities=[weights[name] / total for name in drawn],
        seed=seed,
        stopping_strategy=stopping_strategy,
    )


def _weight(name: str, part: Mapping[str, Any]) -> float:
    if "_target_" not in part:
        raise ValueError(f"parts.{name} names no data set; +data@data.parts.{name}=gsm8k does, for example")
    weight = part.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise ValueError(f"parts.{name}.weight={weight!r} is no weight; use 0 or a positive number")
    return weight


def _part(name: str, split: str, part: Mapping[str, Any], drop: Sequence[str]) -> datasets.Dataset:
    settings = {key: value for key, value in part.items() if key not in ("_target_", "weight")}
    try:
        rows = get_method(part["_target_"])(split, **settings)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"parts.{name}: {error}") from error
    rows = rows.remove_columns([column for column in ("source", *drop) if column in rows.column_names])
    return rows.add_column("source", [name] * len(rows))


def _check_types(rows: Mapping[str, datasets.Dataset]) -> None:
    """Refuse a column that has one type in one part and another type in another."""
    seen: dict[str, tuple[str, Any]] = {}
    for name, part in rows.items():
        for column, kind in part.features.items():
            other, expected = seen.setdefault(column, (name, kind))
            if kind != expected:
                raise ValueError(
                    f"column {column!r} is {expected} in parts.{other} and {kind} in parts.{name};"
                    f" drop=[{column}] leaves it out"
                )
