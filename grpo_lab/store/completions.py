"""What the policy wrote: the completions of every step, and its answers to the held-out problems."""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from grpo_lab.config.errors import RequestError
from grpo_lab.store.files import Row, write_parquet
from grpo_lab.store.folder import Run

TOKENS = "completion_tokens"
"""Column that the worker adds to TRL's: length of the completion, its end token included."""
BATCH = 64
"""Rows that are in memory at a time: a prompt may have a megabyte."""
T = TypeVar("T")
_NO_REWARDS = ("step", "prompt", "completion", "advantage", TOKENS)


class DamagedCompletions(RequestError):
    """The completions of a run cannot be read."""


def gather(run: Run) -> None:
    """Write completions.parquet, if there are any: step, prompt, completion, one column a reward, advantage.

    A file that a kill or a full disk has torn is left out. Raises DiskFull.
    """
    from pyarrow import ArrowInvalid, concat_tables, parquet

    tables, needed = [], 0
    for file in step_files(run):
        with contextlib.suppress(ArrowInvalid):
            tables.append(parquet.read_table(file))
            needed += file.stat().st_size
    if tables:  # a run of an older version that goes on has no lengths before it does
        write_parquet(concat_tables(tables, promote_options="default"), run.completions, needed)


def step_files(run: Run) -> list[Path]:
    """One file a step, as TRL writes them."""
    return sorted(run.step_completions.glob("completions_*.parquet"))


@dataclass(frozen=True)
class Sample:
    """A completion and what it earned."""

    prompt: str
    """All that the policy was given, messages one after the other."""
    text: str
    step: int = 0
    problem: int = 0
    """Number of its prompt, from 1 in the order in which the run first asked them; 0 where nobody counted."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """Name -> value that the function gave, before its weight."""
    reward: float | None = None
    """Their weighted sum."""
    advantage: float | None = None
    tokens: int | None = None
    """None in runs of versions that did not record it."""
    cut_off: bool | None = None
    """Whether it is as long as completions may be."""


@dataclass(frozen=True)
class Asked:
    """The part of a run's config that its completions are read with."""

    weights: Mapping[str, float]
    longest: int | None
    """Tokens that a completion may have."""

    @classmethod
    def of(cls, run: Run) -> Asked:
        """Empty where config.yaml is missing, as beside completions that were copied alone."""
        config = run.read_config()
        weights = {name: float(reward.get("weight", 1.0)) for name, reward in (config.get("rewards") or {}).items()}
        return cls(weights, (config.get("grpo") or {}).get("max_completion_length"))


def samples(run: Run, files: Sequence[Path] | None = None, steps: frozenset[int] | None = None) -> Iterator[Sample]:
    """Every completion of a run in the order of its steps, also while it goes on; nothing where none were recorded.

    `files`, `steps`: only these, whose problems are then not counted. A file of a step that cannot be read is left
    out: it may be being written.

    Raises:
        DamagedCompletions: for a completions.parquet that cannot be read.
    """
    asked, numbers = Asked.of(run), dict[int, int]()
    for file in _sources(run) if files is None else files:
        for row in _rows(file, steps, lasting=file == run.completions):
            prompt = text_of(row.get("prompt"))
            number = numbers.setdefault(hash(prompt), len(numbers) + 1) if files is None and steps is None else 0
            yield _sample(row, prompt, number, asked)


def recorded(run: Run) -> dict[int, int]:
    """Step -> completions of it. Raises DamagedCompletions, as for :func:`samples`."""
    counts = collections.Counter[int]()
    for file in _sources(run):
        counts.update(row["step"] for row in _rows(file, columns=["step"], lasting=file == run.completions))
    return dict(counts)


def _sources(run: Run) -> list[Path]:
    whole = [run.completions] if run.completions.is_file() else []
    return whole if whole and run.result.is_file() else step_files(run) or whole


def _rows(
    file: Path, steps: frozenset[int] | None = None, columns: list[str] | None = None, *, lasting: bool
) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet
    from pyarrow.compute import field as column

    try:
        with parquet.ParquetFile(file) as whole:
            for batch in whole.iter_batches(BATCH, columns=columns):
                chosen = batch if steps is None else batch.filter(column("step").isin(list(steps)))
                yield from chosen.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        if lasting:
            raise DamagedCompletions(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None


def _sample(row: Row, prompt: str, problem: int, asked: Asked) -> Sample:
    rewards = {
        name: _number(value)
        for name, value in row.items()
        if name not in _NO_REWARDS and (value is None or isinstance(value, int | float))
    }
    tokens = row.get(TOKENS)
    return Sample(
        prompt,
        text_of(row.get("completion")),
        int(row.get("step") or 0),
        problem,
        rewards,
        _weighted(rewards, asked.weights),
        _number(row.get("advantage")),
        tokens,
        None if tokens is None or asked.longest is None else tokens >= asked.longest,
    )


def _weighted(rewards: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """Weighted sum as TRL adds it up: a reward of None counts nothing. None where all are."""
    known = {name: weight for name, weight in weights.items() if name in rewards} or dict.fromkeys(rewards, 1.0)
    parts = [weight * value for name, weight in known.items() if (value := rewards[name]) is not None]
    return math.fsum(parts) if parts else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def of_steps(run: Run, first: int, last: int) -> list[Sample]:
    """What was sampled from one step to another, both included; nothing where that is not recorded or damaged."""
    if not run.completions.is_file():
        return []
    try:
        return list(samples(run, [run.completions], frozenset(range(first, last + 1))))
    except DamagedCompletions:
        return []


def text_of(messages: Any) -> str:
    """The text of a string or of chat messages, one after the other."""
    if messages is None or isinstance(messages, str):
        return messages or ""
    return "\n".join(str(message.get("content") or "") for message in messages)


def shortened(text: str, longest: int | None, way_out: str = "") -> str:
    """The two ends of a text of more than `longest` characters, with how long it is and the way to all of it."""
    if longest is None or len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... of {len(text):,} characters{way_out} ...]\n{text[-half:]}"


def evenly(several: Sequence[T], count: int) -> Sequence[T]:
    """`count` items from the first to the last, both among them; all where there are no more."""
    if count >= len(several):
        return several
    return [several[round(place * (len(several) - 1) / max(1, count - 1))] for place in range(count)]


def save_answers(run: Run, moment: str, prompts: Sequence[Any], texts: Sequence[str], marks: Sequence[Any]) -> None:
    """Write what was answered to the held-out problems, in their order. Raises DiskFull."""
    import pyarrow

    columns = {"prompt": [text_of(prompt) for prompt in prompts], "completion": list(texts), "right": list(marks)}
    write_parquet(pyarrow.table(columns), run.answers(moment))


@dataclass(frozen=True)
class Change:
    """A held-out problem that was answered right at one end of the run and wrong at the other."""

    problem: int
    """From 1, in the order of the held-out problems."""
    right_after: bool
    prompt: str
    before: str
    after: str


def changes(run: Run) -> list[Change]:
    """Problems that were right and are wrong, then the reverse.

    Raises:
        RequestError: where the run has not answered them twice, or not left its answers.
    """
    before, after = (list(_answers(run, moment)) for moment in ("before", "after"))
    pairs = [
        Change(number, bool(last["right"]), last["prompt"], first["completion"], last["completion"])
        for number, (first, last) in enumerate(zip(before, after, strict=False), 1)
        if None not in (first["right"], last["right"]) and first["right"] != last["right"]
    ]
    return sorted(pairs, key=lambda change: change.right_after)


def _answers(run: Run, moment: str) -> Iterator[Row]:
    file = run.answers(moment)
    if not file.is_file():
        marks = run.evaluation(moment).is_file()
        why = "it was made by a version that left marks only" if marks else "it was not evaluated, or not yet"
        raise RequestError(f"{run.folder} has no answers to held-out problems {moment} training: {why}")
    return _rows(file, lasting=True)
