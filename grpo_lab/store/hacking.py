"""Signs that a policy learned to please its rewards and not to solve the problems: its last tenth of the steps against
its first. `python -m grpo_lab.store.hacking RUN` shows what is measured of a run beside the thresholds.

The thresholds keep clear of healthy runs (five seeds of the tiny policy: entropy falls to 0.05, a quarter of what it
was; completions grow from 14 to 16 tokens). They are to show a policy that copies the question: `\\boxed{82-49}`.
"""

from __future__ import annotations

import collections
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_lab.store import completions
from grpo_lab.store.completions import Sample
from grpo_lab.store.folder import Row, Run

LEAST_STEPS = 10
RISE = 0.1
"""Of the accuracy reward (of the reward where there is none): that it went up."""
BESIDE = 0.1
"""Rise of the accuracy reward, as a share of the whole reward's, below which another reward was learned."""
SHORT_TOKENS, SHORTER = 16, 0.25
"""Completions shorter than a literal: mean tokens at the end, and their share of those at the start."""
DOMINANT, PROMPTS = 0.5, 8
"""Share of the last prompts that were answered with one and the same text, of at least so many prompts."""
COPIED, COPIED_RISE = 0.5, 0.25
"""Share of the last completions whose answer is a piece of the prompt, and by how much it rose."""
CUT_OFF, CUT_OFF_BEFORE = 0.95, 0.5
"""Share of completions cut off, at the end at least and at the start at most."""
ENTROPY, ENTROPY_SHARE = 0.01, 0.1
"""Nats a token at the end, and their share of those at the start: below both."""
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"[-+]?[\d.,]+%?")


@dataclass(frozen=True)
class Ends:
    """A number in the first and in the last tenth of the steps; None where it was not measured."""

    first: float | None
    last: float | None

    @property
    def rise(self) -> float | None:
        return None if self.first is None or self.last is None else self.last - self.first

    def both(self, test: Callable[[float, float], bool]) -> bool:
        return self.first is not None and self.last is not None and test(self.first, self.last)


@dataclass(frozen=True)
class Measured:
    accuracy: Ends
    reward: Ends
    tokens: Ends
    cut_off: Ends
    entropy: Ends
    copied: Ends
    dominant: float
    """Share of the last prompts that have the most common completion."""
    common: str
    """That completion."""
    copy: str
    """A completion that copies its prompt; empty where none does."""
    sample: str
    """The last completion."""


def measure(run: Run) -> Measured | None:
    """None for a run of fewer than LEAST_STEPS."""
    rows = run.rows()
    if len(rows) < LEAST_STEPS:
        return None
    tenth = max(3, len(rows) // 10)
    first, last = rows[:tenth], rows[-tenth:]
    before = completions.of_steps(run, first[0]["step"], first[-1]["step"])
    after = completions.of_steps(run, last[0]["step"], last[-1]["step"])
    common, dominant = _most_common(after)
    accuracy = "rewards/accuracy/mean" if any("rewards/accuracy/mean" in row for row in last) else "reward"
    return Measured(
        accuracy=_ends(first, last, accuracy),
        reward=_ends(first, last, "reward"),
        tokens=_ends(first, last, "completions/mean_length"),
        cut_off=_ends(first, last, "completions/clipped_ratio"),
        entropy=_ends(first, last, "entropy"),
        copied=Ends(_mean(map(copies, before)), _mean(map(copies, after))),
        dominant=dominant,
        common=common,
        copy=next((completion.text for completion in after if copies(completion)), ""),
        sample=after[-1].text if after else "",
    )


def warnings(run: Run) -> dict[str, Row]:
    """Sign -> `message` and `sample`, a completion that shows it."""
    measured = measure(run)
    return {} if measured is None else signs(measured)


def signs(measured: Measured) -> dict[str, Row]:
    shown = {}
    for name, (test, message, sample) in SIGNS.items():
        if test(measured):
            shown[name] = {"message": message(measured), "sample": sample(measured)}
    return shown


def _is_short(ends: Measured) -> bool:
    fell = ends.tokens.both(lambda first, last: last <= SHORT_TOKENS and last <= SHORTER * first)
    return fell and ends.accuracy.both(lambda first, last: last - first >= RISE)


def _learned_another(ends: Measured) -> bool:
    rise, of_accuracy = ends.reward.rise, ends.accuracy.rise
    return rise is not None and of_accuracy is not None and rise >= RISE and of_accuracy < BESIDE * rise


SIGNS: dict[str, tuple[Callable[[Measured], bool], Callable[[Measured], str], Callable[[Measured], str]]] = {
    "short_completions": (
        _is_short,
        lambda ends: (
            f"accuracy rose while completions shrank from {ends.tokens.first:.0f} to {ends.tokens.last:.0f} tokens:"
            " read some, they may please the reward without an answer"
        ),
        lambda ends: ends.sample,
    ),
    "one_completion": (
        lambda ends: ends.dominant >= DOMINANT,
        lambda ends: f"one and the same completion answers {ends.dominant:.0%} of the last prompts",
        lambda ends: ends.common,
    ),
    "another_reward": (
        _learned_another,
        lambda ends: (
            f"the reward rose by {ends.reward.rise:.2f} and the accuracy reward by {ends.accuracy.rise:.2f}:"
            " the policy learned one of the other rewards"
        ),
        lambda ends: ends.sample,
    ),
    "copied_prompts": (
        lambda ends: ends.copied.both(lambda first, last: last >= COPIED and last - first >= COPIED_RISE),
        lambda ends: f"{ends.copied.last:.0%} of the last answers are copied from the prompt",
        lambda ends: ends.copy,
    ),
    "cut_off_completions": (
        lambda ends: ends.cut_off.both(lambda first, last: last >= CUT_OFF and first <= CUT_OFF_BEFORE),
        lambda ends: f"{ends.cut_off.last:.0%} of the last completions were cut off, {ends.cut_off.first:.0%} at first",
        lambda ends: ends.sample,
    ),
    "entropy_collapse": (
        lambda ends: ends.entropy.both(lambda first, last: last < ENTROPY and last < ENTROPY_SHARE * first),
        lambda ends: (
            f"the policy's entropy fell from {ends.entropy.first:.2g} to {ends.entropy.last:.2g} nats a token:"
            " its completions hardly differ, so there is little left to learn from"
        ),
        lambda ends: ends.sample,
    ),
}
"""Sign -> when it shows, what is said of it, and the completion that is shown with it."""


def copies(completion: Sample) -> bool:
    """Whether its answer, which is no number, stands in the prompt: of three characters or more, spaces left out."""
    answer = _squeezed(answer_of(completion.text))
    return len(answer) >= 3 and not _NUMBER.fullmatch(answer) and answer in _squeezed(completion.prompt)


def answer_of(text: str) -> str:
    """What stands in the last box or answer tag; the whole text where there is none."""
    found = _BOXED.findall(text) or _ANSWER.findall(text)
    return str(found[-1]) if found else text


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]", "", text)


def _most_common(several: Sequence[Sample]) -> tuple[str, float]:
    """The text that the most prompts were answered with, and their share; of too few prompts the share is 0."""
    pairs = {(completion.prompt, completion.text) for completion in several}
    prompts = len({prompt for prompt, _ in pairs})
    if prompts < PROMPTS:
        return "", 0.0
    text, count = collections.Counter(text for _, text in pairs).most_common(1)[0]
    return text, count / prompts


def _ends(first: Sequence[Row], last: Sequence[Row], key: str) -> Ends:
    return Ends(*(_mean(row[key] for row in part if row.get(key) is not None) for part in (first, last)))


def _mean(values: Iterable[float]) -> float | None:
    several = list(values)
    return sum(several) / len(several) if several else None


def main(folder: Path) -> None:
    """Print what is measured, the thresholds and the signs."""
    measured = measure(Run(folder))
    if measured is None:
        sys.exit(f"{folder}: fewer than {LEAST_STEPS} steps")
    for name, value in vars(measured).items():
        ends = f"{value.first} -> {value.last}" if isinstance(value, Ends) else repr(value)
        print(f"{name:<10}{ends}")
    for name, sign in signs(measured).items():
        print(f"warning {name}: {sign['message']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
