"""Settings `auto`: the system prompt by the rewards, numbers of training by the size of the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import shape, size
from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import Config, ModelConfig

AUTO = "auto"
TOY = 20_000_000
"""Parameters below which a policy follows no instruction: it is asked as it was trained to be asked."""
ADAPTER = 10
"""Ratio of the learning rate of an adapter to that of all weights (Schulman et al., LoRA Without Regret, 2025)."""


@dataclass(frozen=True)
class Numbers:
    """What suits policies of fewer than `below` parameters."""

    below: float
    max_steps: int
    learning_rate: float
    max_completion_length: int


SIZES = (
    Numbers(TOY, 100, 1.5e-4, 64),
    Numbers(1e8, 100, 5e-5, 128),
    Numbers(3e8, 200, 1e-5, 256),
    Numbers(2e9, 200, 5e-6, 512),
    Numbers(5e9, 200, 2e-6, 512),
    Numbers(float("inf"), 200, 1e-6, 512),
)
"""From published runs: the embedded policy's own, SmolLM2's (experiments/), Open-R1's, TinyZero's and DAPO's."""


def settle_numbers(composed: DictConfig) -> DictConfig:
    """The same configuration with a number for each `grpo.*=auto`. Only before interpolations are resolved do those
    that refer to such a number get it."""
    options = [key for key in ("max_steps", "learning_rate", "max_completion_length") if composed.grpo.get(key) == AUTO]
    if not options:
        return composed
    model = OmegaConf.to_object(composed.model)
    assert isinstance(model, ModelConfig)
    suited = _numbers(model, adapted=composed.peft.kind != "none")
    settled = composed.copy()
    for key in options:
        settled.grpo[key] = suited[key]
    return settled


def _numbers(model: ModelConfig, *, adapted: bool) -> dict[str, Any]:
    """A policy of unknown size gets what suits the largest: it changes them least."""
    parameters, context = _known(model)
    row = next(row for row in SIZES if (SIZES[-2].below if parameters is None else parameters) < row.below)
    return {
        "max_steps": row.max_steps,
        "learning_rate": float(f"{row.learning_rate * (ADAPTER if adapted else 1):g}"),
        "max_completion_length": min(row.max_completion_length, max(1, context // 2)),
    }


def _known(model: ModelConfig) -> tuple[int | None, int]:
    """Parameters and context. A checkpoint that cannot be read is refused by the plan, in its own words."""
    try:
        known = shape(model)
        return size(model), (known and known.context) or 2**31
    except RequestError:
        return None, 2**31


def settle_prompt(config: Config) -> None:
    """Put the system prompt in the place of `data.system_prompt=auto`, in parts of a mixture as well."""
    for data in _with_prompt(config.data):
        if data["system_prompt"] == AUTO:
            data["system_prompt"] = None if _knows(config.model) else system_prompt(config.rewards)


def _with_prompt(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of data sets, of parts of a mixture too, that have a system prompt."""
    if "system_prompt" in data:
        yield data
    for part in (data.get("parts") or {}).values():
        if isinstance(part, dict):
            yield from _with_prompt(part)


def _knows(model: ModelConfig) -> bool:
    """Whether the policy needs no instruction (shipped ones), learns none (random weights) or would follow none."""
    parameters, _ = _known(model)
    toy = parameters is not None and parameters < TOY
    return toy or model.weights == "random" or model.path.startswith("asset:")


BOXED, ANSWER, THOUGHT = "\\boxed", "<answer>", "</think>"
Marks = frozenset[str]
_REASONED = (Marks({THOUGHT, ANSWER}),)
_READS = "accuracy", "lengths.cosine", "matching.exact_match", "matching.reasoning_accuracy", "matching.number_match"
"""Rewards that look for an answer, in marks or `extract=anywhere`."""


def _looked_for(reward: Mapping[str, Any]) -> tuple[Marks, ...]:
    """Sets of marks, one of which a completion needs for this reward; empty: none is needed, or none is known."""
    name = str(reward.get("_target_")).removeprefix("grpo_lab.rewards.")
    if name in _READS:
        marked = reward.get("extract", "last_tag") == "last_tag" and name != "matching.number_match"
        if name == "matching.reasoning_accuracy":
            return (Marks({THOUGHT, ANSWER}), Marks({THOUGHT, BOXED})) if marked else (Marks({THOUGHT}),)
        return (Marks({BOXED}), Marks({ANSWER})) if marked else ()
    if name == "formats.tag_count":
        return (Marks(map(str, reward.get("tags") or ())),)
    return {
        "formats.boxed": (Marks({BOXED}),),
        "countdown.countdown": (Marks({ANSWER}),),
        **dict.fromkeys(("format", "formats.soft", "formats.strict"), _REASONED),
    }.get(name, ())


def system_prompt(rewards: Mapping[str, Any]) -> str | None:
    """The shipped prompt that tells what most rewards look for; `plain` where an answer may stand anywhere."""
    chosen = [reward for reward in rewards.values() if isinstance(reward, dict)]
    wanted = [marks for marks in map(_looked_for, chosen) if marks]
    if wanted:
        return max(("boxed", "r1"), key=lambda name: sum(_told(_text(name), marks) for marks in wanted))
    reads = any(str(reward.get("_target_")).removeprefix("grpo_lab.rewards.") in _READS for reward in chosen)
    return "plain" if reads else None


def _told(text: str, marks: tuple[Marks, ...]) -> bool:
    return any(all(mark in text for mark in together) for together in marks)


def _text(asked: Any) -> str:
    """Text of a system prompt, as grpo_lab.data.prompts reads it; empty for a missing file, which the data refuse."""
    if not isinstance(asked, str) or any(letter.isspace() for letter in asked):
        return str(asked or "")
    shipped = ASSETS / "prompts" / f"{asked}.txt"
    file = shipped if shipped.is_file() else Path(asked).expanduser()
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def prompt_notes(config: Config) -> Iterator[str]:
    """Rewards for a format that no system prompt asks for."""
    if _knows(config.model):
        return
    texts = [(data["system_prompt"], _text(data["system_prompt"])) for data in _with_prompt(config.data)]
    for name, reward in config.rewards.items():
        marks = _looked_for(reward)
        for asked in dict.fromkeys(asked or "none" for asked, text in texts if marks and not _told(text, marks)):
            sought = " or ".join(" and ".join(sorted(together)) for together in marks)
            shown = asked if len(asked) <= 40 else f"{asked[:40]}..."
            yield (
                f"rewards.{name} looks for {sought}, which data.system_prompt={shown} does not ask for: unless the"
                " problems or the policy's habit do, it stays at its lowest; auto asks for what the rewards look for"
            )
