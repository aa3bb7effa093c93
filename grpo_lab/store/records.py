"""What the JSON files of a run folder hold: dataclasses, written and read back as the same dataclasses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.gpus import PACKAGES, Machine, describe
from grpo_lab.store.files import Row, read_json, write_json

Record = TypeVar("Record")
LEFT_OUT = {"left_out": True}
"""Metadata of a field that the file does not have while it is None."""
FLAT = {"flat": PACKAGES}
"""Metadata of a mapping whose entries stand beside the other fields in the file, under these names."""


@dataclass(frozen=True)
class Failure:
    """Why a run did not finish."""

    class_: str
    """One of `infeasible`, `oom`, `server_died`, `server_timeout`, `worker_crash`, `killed`, `timeout`,
    `nan`, `disk_full`, `bad_data`, `bad_reward`, `bad_model` or `error`."""
    message: str
    """What happened, and the way out where there is one."""
    log: str | None = None
    """Log file that says more."""

    def adding(self, text: str) -> Failure:
        """The same, with `text` after its message."""
        return dataclasses.replace(self, message=self.message + text)


@dataclass(frozen=True)
class Progress:
    """What the worker is doing (progress.json)."""

    phase: str
    done: int = 0
    total: int = 0
    doing: str | None = None
    """What it waits for within a step: `sync`, `generate`, or None."""


@dataclass(frozen=True)
class Outcome:
    """What the worker leaves (outcome.json), field by field as it gets there."""

    startup_s: float | None = field(default=None, metadata=LEFT_OUT)
    data: Mapping[str, Mapping[str, int]] | None = field(default=None, metadata=LEFT_OUT)
    """Split -> `rows`, and `too_long`: those that data.max_prompt_tokens dropped."""
    kv_cache_tokens: int | None = field(default=None, metadata=LEFT_OUT)
    finished: bool | None = field(default=None, metadata=LEFT_OUT)
    look: str | None = field(default=None, metadata=LEFT_OUT)
    """How a user sees the run in its tracker, one line."""
    failure: Failure | None = field(default=None, metadata=LEFT_OUT)
    peak_memory_gib: float | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run of `kind` train or bench ended (result.json)."""

    kind: str = "train"
    """`train` or `bench`."""
    status: str
    """`finished`, `failed`, or in a sweep `infeasible`."""
    failure: Failure | None = None
    """Null for a finished run."""
    model: str = ""
    """`model.name` of the config."""
    algorithm: str | None = field(default=None, metadata=LEFT_OUT)
    """The trainer, `algorithm.kind`; not in a bench's."""
    vllm_mode: str = "off"
    """`off`, `colocate` or `server`."""
    tp: int = 1
    """GPUs that share the weights of one engine."""
    dp: int = 1
    """Data-parallel engines."""
    gpus: int = 0
    """All GPUs of the run; 0 on a machine without."""
    seed: int = 0
    """`seed` of the config."""
    steps: int = 0
    """Recorded steps; rounds of a bench."""
    warmup_steps: int = 0
    """First steps (of a bench: rounds of each load) that every timing leaves out."""
    data: Mapping[str, Mapping[str, int]] | None = field(default=None, metadata=LEFT_OUT)
    """`train` and `test`, each with its `rows`, and `too_long`: rows that `data.max_prompt_tokens` dropped."""
    warnings: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    """[Signs](faults.md#numbers) that it learned nothing, or to please its rewards, or computed no numbers: each with a
    `message`; `steps` that show it, `of` how many, and `count`, where they can be counted; a completion as `sample`."""
    accuracy_rule: str | None = field(default=None, metadata=LEFT_OUT)
    """The reward, with its parameters, by which held-out answers were right: the run's own one for accuracy."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """See below; of a bench those of the first load."""
    loads: tuple[Mapping[str, Any], ...] | None = field(default=None, metadata=LEFT_OUT)
    """Of a bench: of each load `name`, `load` (what was asked: `prompts`, `num_generations`, `prompt_len`,
    `completion_len`, `concurrency`) and `metrics`."""


@dataclass(frozen=True, kw_only=True)
class Env:
    """Where and how a run was started (env.json)."""

    run_id: str | None = field(default=None, metadata=LEFT_OUT)
    """Of the tracker; a run that goes on keeps it."""
    identity: str | None = field(default=None, metadata=LEFT_OUT)
    command: str = ""
    git_commit: str | None = None
    gpus: tuple[str, ...] = ()
    """Names."""
    gpu_memory_gib: float | None = None
    processor: str = ""
    cores: int = 0
    host_ms: float | None = None
    memory_gib: float = 0.0
    python: str = ""
    system: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, metadata=FLAT)
    """Distribution -> version."""


@dataclass(frozen=True, kw_only=True)
class FrozenPoint:
    """A point of a sweep, as it was before the first one started."""

    number: int = 0
    name: str
    """Of its run folder."""
    overrides: tuple[str, ...] = ()
    """Those that not all points have."""
    identity: str = ""
    gpus: int = 0
    cores: int = 0
    refused: str | None = None
    """Why it cannot run on the machine."""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrozenSweep:
    """What sweep.json holds."""

    command: str = ""
    experiment: str | None = None
    """Of `experiment=` in the command."""
    run_id: str | None = None
    """Of the summary in the tracker."""
    points: tuple[FrozenPoint, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation measured (its result.json)."""

    policy: str
    """What was evaluated, for a reader."""
    model_path: str
    """Folder or Hub id of the weights."""
    adapter: str | None
    """Folder of the LoRA adapter on them; null without one."""
    metrics: Mapping[str, Any]
    """`pass@k` of every k: `value`, `ci95`, and `n` problems; null where no gold answer is readable."""
    problems: int
    """Problems that were asked."""
    unreadable: int
    """Problems without a readable gold answer, which no metric counts."""
    samples: int
    """Completions of each problem."""
    sampling: Mapping[str, Any]
    """Temperature and the other settings of sampling."""
    seed: int
    """Seed of sampling."""
    seconds: float
    """Seconds of generation, without loading the model."""
    tokens: int
    """Tokens of all completions."""
    backend: str
    """`vllm` or `transformers`."""
    accuracy_rule: str | None = None
    """The reward, with its parameters, that says what is right: the run's own one for accuracy."""
    env: Env | None = None
    """Where it was evaluated, as in env.json."""


@dataclass(frozen=True)
class Published:
    """Where a run's policy went the last time (published.json)."""

    repo_id: str
    commit: str


def env(machine: Machine, **fields: Any) -> Env:
    """Of this machine and its versions."""
    return build(Env, {**fields, **describe(machine)}, Path("env.json"))


def read(path: Path, kind: type[Record]) -> Record | None:
    """What :func:`write` wrote; None where the file does not exist. Raises as :func:`build` does."""
    content = read_json(path)
    return None if content is None else build(kind, content, path)


def must_read(path: Path, kind: type[Record]) -> Record:
    """As :func:`read`, of a file that must exist. Raises FileNotFoundError."""
    return build(kind, json.loads(path.read_text(encoding="utf-8")), path)


def write(path: Path, record: Any) -> None:
    """Replace the file in one step. Raises DiskFull; the file is then as it was."""
    write_json(path, content_of(record))


def content_of(record: Any) -> Row:
    """The JSON object of a dataclass. A field named after a keyword of Python ends in `_`, which its JSON lacks."""
    content: Row = {}
    for entry in dataclasses.fields(record):
        value = getattr(record, entry.name)
        if "flat" in entry.metadata:
            content |= value
        elif value is not None or "left_out" not in entry.metadata:
            content[entry.name.rstrip("_")] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return content_of(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def build(kind: type[Record], content: Any, path: Path, inside: str = "") -> Record:
    """The dataclass of a JSON object that was read from `path`. What the class computes itself is not read.

    Raises:
        RequestError: for a field that the class does not have, or lacks, or no object at all.
    """
    if not isinstance(content, dict):
        raise RequestError(f"{path}: {inside.rstrip('.') or 'its content'} is not an object; the file is damaged")
    known = _fields(kind)  # type: ignore[arg-type]
    given: Row = {}
    for name, value in content.items():
        if name in known:
            own, declared = known[name]
            given[own] = _value(declared, value, path, f"{inside}{name}")
        elif flat := _flat(kind, name):
            given.setdefault(flat, {})[name] = value
        elif not hasattr(kind, name):
            raise RequestError(f"{path}: unknown field '{inside}{name}', made by a newer version; update grpo-lab")
    for name, (own, _) in known.items():
        if own not in given and _is_required(kind, own):
            raise RequestError(f"{path}: no field '{inside}{name}', made by an older version; resume=false starts over")
    return kind(**given)


def _value(declared: Any, value: Any, path: Path, inside: str) -> Any:
    """A field's value as its type wants it: JSON has neither dataclasses nor tuples."""
    kinds = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    for kind in kinds:
        if isinstance(value, list) and get_origin(kind) is tuple:
            item = get_args(kind)[0]
            return tuple(_value(item, part, path, inside) for part in value)
        if dataclasses.is_dataclass(kind) and value is not None:
            return build(kind, value, path, f"{inside}.")  # type: ignore[arg-type]
    if get_origin(declared) is tuple:
        raise RequestError(f"{path}: {inside} is not a list; the file is damaged")
    return value


@cache
def _fields(kind: Any) -> dict[str, tuple[str, Any]]:
    """Name in the file -> name in the class, declared type."""
    hints = get_type_hints(kind)
    named = [entry.name for entry in dataclasses.fields(kind) if "flat" not in entry.metadata]
    return {name.rstrip("_"): (name, hints[name]) for name in named}


def _flat(kind: Any, name: str) -> str | None:
    """The field of FLAT that takes an entry of this name."""
    return next((entry.name for entry in dataclasses.fields(kind) if name in entry.metadata.get("flat", ())), None)


def _is_required(kind: Any, name: str) -> bool:
    entry = kind.__dataclass_fields__[name]
    return entry.default is MISSING and entry.default_factory is MISSING
