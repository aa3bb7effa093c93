"""What the policy wrote, in a terminal: coloured by reward, and never obeyed by it."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from grpo_lab.store import completions
from grpo_lab.store.completions import Change, Sample, evenly, shortened
from grpo_lab.store.folder import Run

SHORT = 600
"""Characters of a prompt or completion that are shown where not all were asked for."""
EVERY_S = 1.0
"""Between looks at a run that goes on."""
MARKS = 4
"""Combining characters on one letter; more are an attempt to paint over other lines."""
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal may act on: control, direction, invisible, line separators."""
_JOINERS = "\u200c\u200d"
"""Needed to spell some languages and emoji; they only act on their neighbours."""


@dataclass(frozen=True)
class Scale:
    """The rewards that stand for red and for green."""

    low: float
    high: float

    @classmethod
    def of(cls, rewards: Iterable[float | None]) -> Scale:
        known = [reward for reward in rewards if reward is not None]
        return cls(min(known, default=0.0), max(known, default=0.0))

    def colour(self, reward: float | None) -> str:
        if reward is None or self.high <= self.low:
            return "default"
        share = (reward - self.low) / (self.high - self.low)
        return "red" if share < 1 / 3 else "yellow" if share < 2 / 3 else "green"


def harmless(text: str) -> str:
    """A text from outside as a terminal can show it: what it would act on stands as an escape, as `\\x1b`."""
    shown, marks = [], 0
    for letter in text.expandtabs(4):
        marks = marks + 1 if unicodedata.combining(letter) else 0
        obeyed = unicodedata.category(letter) in _OBEYED and letter not in _JOINERS and letter != "\n"
        shown.append(repr(letter)[1:-1] if obeyed else ascii(letter)[1:-1] if marks > MARKS else letter)
    return "".join(shown)


def cut(text: str, longest: int | None) -> str:
    return shortened(text, longest, "; --full shows all")


def show(console: Console, sample: Sample, scale: Scale, longest: int | None = SHORT) -> None:
    """Print a sample: step, problem, reward and its parts, prompt, completion."""
    colour = scale.colour(sample.reward)
    console.print(_heading(sample, colour))
    parts = "  ".join(f"{harmless(name)} {_shown(value)}" for name, value in sample.rewards.items())
    _block(console, parts, "dim")
    _block(console, cut(sample.prompt, longest), "bold")
    _block(console, cut(sample.text, longest) or "(empty)", colour)
    console.print()


def _heading(sample: Sample, colour: str) -> Text:
    words = [f"step {sample.step}", *([f"problem {sample.problem}"] if sample.problem else [])]
    words += [f"advantage {sample.advantage:+.2f}"] if sample.advantage is not None else []
    words += [f"{sample.tokens} tokens"] if sample.tokens is not None else [f"{len(sample.text)} characters"]
    words += ["cut off"] if sample.cut_off else []
    return Text.assemble((f"reward {_shown(sample.reward)}", f"bold {colour}"), f"  {' | '.join(words)}")


def _block(console: Console, text: str, style: str) -> None:
    if text:
        console.print(Padding(Text(harmless(text), style, overflow="fold"), (0, 0, 0, 2), expand=False))


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def show_change(console: Console, change: Change, longest: int | None = SHORT) -> None:
    """Print a held-out problem with its answers before and after training."""
    words = ("wrong", "right") if change.right_after else ("right", "wrong")
    colours = ("red", "green") if change.right_after else ("green", "red")
    console.print(Text(f"held-out problem {change.problem}: {words[0]} before, {words[1]} after", f"bold {colours[1]}"))
    _block(console, cut(change.prompt, longest), "bold")
    for moment, text, colour in zip(("before", "after"), (change.before, change.after), colours, strict=True):
        _block(console, f"{moment}: {cut(text, longest)}", colour)
    console.print()


def spread(several: Sequence[Sample], count: int) -> list[Sample]:
    """Samples from the lowest reward to the highest, both of them among `count`."""
    ranked = sorted(several, key=lambda sample: (sample.reward is not None, sample.reward or 0.0))
    return list(evenly(ranked, count))


def latest(run: Run, seen: int = 0) -> list[Sample]:
    """The samples of the last step whose file can be read, if that is after `seen`."""
    for file in reversed(completions.step_files(run)):
        if int(file.stem.rpartition("_")[2]) <= seen:
            break
        if several := list(completions.samples(run, [file])):
            return several
    return []


def two(console: Console, run: Run, label: str = "") -> None:
    """Print the worst and the best sample of the last step; nothing where none was recorded."""
    if several := latest(run):
        console.print(Text(label or f"samples of step {several[0].step}, the worst and the best", "dim"))
        for sample in spread(several, 2):
            show(console, sample, Scale.of(each.reward for each in several), SHORT // 2)


def follow(run: Run) -> Iterator[list[Sample]]:
    """The samples of each step as it is recorded, until the run has ended."""
    seen = 0
    while True:
        ended = run.result.is_file()
        if several := latest(run, seen):
            seen = several[0].step
            yield several
        if ended:
            return
        time.sleep(EVERY_S)
