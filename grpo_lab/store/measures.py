"""The list of metrics and the list of phases: result.json, objectives, tables, model card and docs are made of them.

A metric is a row here and the line in worker that writes its column into metrics.jsonl.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lab.store import forms
from grpo_lab.store.folder import Row
from grpo_lab.store.forms import Form

PHASES = {
    "generate": "completions are made; with `async_grpo` the trainer waits for them",
    "sync": "weights go to vLLM",
    "reward": "the reward functions run",
    "logprobs": "log-probabilities of the completions before the update",
    "train": "loss, backward pass, optimizer",
    "other": "the rest",
}
"""Parts of a step, which add up to it -> what rank 0 does in them."""


@dataclass(frozen=True)
class Measure:
    name: str
    """Column of table.csv and of published.csv, and the name in `objective=`."""
    label: str
    """Heading in tables and pictures."""
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    meaning: str = ""
    path: str = ""
    """Field below `metrics` in result.json, keys joined by dots. Default: the name."""
    column: str = ""
    """Column of metrics.jsonl that it is made from. Default: the path with slashes for dots."""
    form: Form = forms.MEDIAN
    """How the column's values become the field."""
    warmup: bool = False
    """Whether the warm-up steps count."""
    inverse_of: str = ""
    """Name of the measure that it is one over; it is no field of result.json then."""
    objective: bool = False
    """Whether a sweeper may optimise it."""
    headline: int = 0
    """Place among the measures that layouts are compared by, from 1. 0: not one of them."""
    shown: bool = True
    """Whether the report's tables have it."""
    csv: bool = True
    """Whether table.csv has it."""
    card: str = ""
    """Its name on the model card. Empty: the card leaves it out."""
    terminal: str = ""
    """Its name in what the terminal shows at the end of a run. Empty: not there."""

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def keys(self) -> list[str]:
        """The way to its field below `metrics`."""
        return (self.path or self.name).split(".")

    def field(self, fields: Mapping[str, Any]) -> Any:
        """What a result's `metrics`, or anything with its keys, hold of it; None where they do not."""
        value: Any = fields
        for key in self.keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def values(self, rows: Sequence[Row]) -> list[Any]:
        """What the rows of metrics.jsonl hold of it."""
        column = self.column or "/".join(self.keys)
        return [row[column] for row in rows if row.get(column) is not None]


# fmt: off
_TOKENS = "completion tokens over the time of generation (of a bench: of a round)"
_PER_GPU = Measure("generated_tokens_per_s_per_gpu", "generated per GPU", "tokens/s", "higher",
                   f"{_TOKENS} and over the GPUs that generate", objective=True)
_GENERATED = Measure("generated_tokens_per_s", "generated", "tokens/s", "higher", _TOKENS, objective=True,
                     terminal="generation")
_TRAIN = (
    Measure("accuracy_before", "pass@1 before", "", None, "held-out pass@1 before training, 0 to 1: one completion a"
            " problem at the training temperature, n problems, Wilson's interval",
            form=forms.SHARE, card="held-out pass@1 before training"),
    Measure("accuracy_after", "pass@1 after", "", "higher", "the same after training",
            form=forms.SHARE, objective=True, headline=1, card="held-out pass@1 after training"),
    Measure("accuracy_gain", "gain", "", "higher", "difference over the same problems, paired interval",
            form=forms.DIFFERENCE, objective=True, card="gain, paired over the same problems"),
    Measure("reward_last", "reward at the end", "", None, "mean reward of the last tenth of the steps, n steps",
            column="reward", form=forms.LAST_TENTH, warmup=True, objective=True,
            card="mean reward of the last tenth of the steps"),
    Measure("step_time_s", "step", "s", "lower", "wall time from the end of a step to the end of the next, logging and"
            " checkpoints left out", objective=True, headline=2, card="seconds a step, median", terminal="step time"),
    Measure("steps_per_s", "steps", "1/s", "higher", inverse_of="step_time_s", shown=False),
    Measure("tokens_per_s_per_gpu", "whole step per GPU", "tokens/s", "higher", "completion tokens over the whole step"
            " and over all GPUs of the run: what compares layouts", objective=True, headline=3,
            card="completion tokens a second and GPU (without one: process), median"),
    _GENERATED,
    _PER_GPU,
    Measure("samples_per_s", "completions", "1/s", "higher", "completions over the whole step",
            objective=True, shown=False),
    Measure("mfu", "MFU", "", "higher", "model FLOPs utilisation, 0 to 1; null where the card's peak or the model's"
            " size is unknown", form=forms.COMPUTED_MEDIAN, objective=True),
    Measure("prompt_tokens", "prompt", "tokens", None, "mean length of a prompt, n completions; null where the trainer"
            " does not count them (`online_dpo`, `async_grpo`)", form=forms.COMPUTED_MEAN, shown=False),
    Measure("logp_difference", "log-probability difference", "nats", None, "mean absolute difference between vLLM's and"
            " the trainer's log-probability of a token", column="sampling/sampling_logp_difference/mean", warmup=True,
            shown=False),
    Measure("padding_share", "padding", "", "lower", "share of padding among the token positions that the trainer"
            " computes, 0 to 1, on rank 0; null where it is not counted (`online_dpo`, `async_grpo`)",
            shown=False),
    *(Measure(f"{phase}_s", phase, "s", None, f"of a step, seen by rank 0: {meaning}", f"time_s.{phase}", shown=False)
      for phase, meaning in PHASES.items()),
    Measure("peak_memory_gib_trainer", "peak memory, trainer", "GiB", None, "most that rank 0 reserved on its GPU, or"
            " held without one", "peak_memory_gib.trainer", form=forms.NUMBER),
    Measure("peak_memory_gib_server", "peak memory, server", "GiB", None, "in use on its fullest GPU at the end",
            "peak_memory_gib.server", form=forms.NUMBER),
    Measure("startup_s_trainer", "start-up, trainer", "s", None, "from the start of its process until it can train",
            "startup_s.trainer", form=forms.NUMBER),
    Measure("startup_s_server", "start-up, server", "s", None, "until it answered", "startup_s.server",
            form=forms.NUMBER),
)
_P99 = "median over rounds of a round's 99th percentile"
_BENCH = (
    dataclasses.replace(_PER_GPU, headline=1, terminal="per GPU"),
    _GENERATED,
    Measure("requests_per_s", "requests", "1/s", "higher", "prompts a second, each with its n completions",
            objective=True),
    Measure("ttft_s", "first token", "s", "lower", "from a request to the first token of each of its completions,"
            " waiting in the queue included: median over rounds of a round's median", objective=True, terminal="TTFT"),
    Measure("ttft_s_p99", "first token, p99", "s", None, _P99, "ttft_s.p99", "ttft_s_p99", forms.PLAIN_MEDIAN),
    Measure("itl_s", "between tokens", "s", "lower", "between two tokens of a completion as they arrive; tokens of one"
            " message share their gap", objective=True, terminal="ITL"),
    Measure("itl_s_p99", "between tokens, p99", "s", None, _P99, "itl_s.p99", "itl_s_p99", forms.PLAIN_MEDIAN),
    Measure("kv_cache_tokens", "KV cache", "tokens", None, "room of all engines together", form=forms.NUMBER),
    Measure("preemptions", "preemptions", "", None, "requests that lost their KV cache and were computed again",
            form=forms.TOTAL),
    Measure("engines", "engines with work", "", None, "that generated", "engines.n", "engines", forms.WORKING_ENGINES),
    Measure("startup_s", "start-up", "s", None, "until the engines were ready", form=forms.NUMBER),
    Measure("power_w", "power, busiest GPU", "W", None, "mean, from the card's energy counter; null where NVIDIA's"
            " driver does not say", form=forms.MEAN_BY_GPU),
    Measure("peak_memory_gib", "peak memory, fullest GPU", "GiB", None, "most in use by all processes on the GPU, seen"
            " every 0.2 s; null where NVIDIA's driver does not say", form=forms.MOST_BY_GPU),
    Measure("round_s", "round", "s", "lower", "from the first request to the end of the last", shown=False, csv=False),
    Measure("tokens_per_joule", "tokens per joule", "tokens/J", "higher", "completion tokens over the energy of the"
            " GPUs", shown=False, csv=False),
    Measure("engine_tokens", "tokens of engines", "tokens", None, "in the measured rounds", "engines.generated_tokens",
            "engines", forms.TOKENS_BY_ENGINE, shown=False, csv=False),
    Measure("prefix_cache_hit_share", "prefix cache hits", "", None, "of the prompt tokens that were looked up, 0 to 1",
            form=forms.PLAIN_MEDIAN, shown=False, csv=False),
    Measure("client_share", "client", "", None, "processor seconds of the server's client over the round's",
            form=forms.PLAIN_MEDIAN, shown=False, csv=False),
)
# fmt: on
MEASURES = {"train": _TRAIN, "bench": _BENCH}
"""Kind of run -> its metrics, in the order of tables."""


def columns(kind: str) -> list[Measure]:
    """Those of table.csv."""
    return [measure for measure in MEASURES[kind] if measure.csv]


def named(kind: str, name: str) -> Measure:
    return next(measure for measure in MEASURES[kind] if measure.name == name)


def objectives() -> dict[str, Measure]:
    """Name -> measure, of what a sweeper can optimise; a name that two kinds share stands once."""
    every = (measure for several in MEASURES.values() for measure in several)
    return {measure.name: measure for measure in every if measure.objective}


def minimized() -> list[str]:
    """The objectives of which less is better."""
    return [name for name, measure in objectives().items() if measure.better == "lower"]


def on_terminal(kind: str) -> list[Measure]:
    return [measure for measure in MEASURES[kind] if measure.terminal]


def headlines(kind: str = "train") -> list[Measure]:
    """What layouts are compared by, side by side."""
    return sorted((measure for measure in MEASURES[kind] if measure.headline), key=lambda measure: measure.headline)


def content(kind: str, timed: Sequence[Row], rows: Sequence[Row], computed: Row) -> Row:
    """The `metrics` of a result.json, from the rows of metrics.jsonl: those after the warm-up, and all.

    `computed`: path -> value of the fields that no column alone gives.
    """
    fields: Row = {}
    for measure in MEASURES[kind]:
        if not measure.inverse_of:
            value = measure.form.reduce(measure.values(rows if measure.warmup else timed))
            _put(fields, measure.keys, computed.get(".".join(measure.keys), value))
    return fields


def _put(fields: Row, keys: Sequence[str], value: Any) -> None:
    """Set a field; a part of a field that was not measured is left out."""
    *above, last = keys
    for key in above:
        fields = fields.setdefault(key, {})
    if fields is not None:
        fields[last] = value
