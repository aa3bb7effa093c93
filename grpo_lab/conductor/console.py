"""What a person sees: the plan before, one line that moves while it runs, the numbers after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from grpo_lab.conductor import samples
from grpo_lab.conductor.keys import Keys
from grpo_lab.config.redaction import redact
from grpo_lab.planner.parts import Command
from grpo_lab.planner.train import shell
from grpo_lab.server.command import ServerPlan
from grpo_lab.store import folder as store
from grpo_lab.store import health, records
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Failure

PLAIN_EVERY_S = 10.0
"""Without a terminal: at most one line in so many seconds."""
NARROWEST, USUAL = 10, 80
"""Columns below which a terminal's width is not believed, and the width that is taken instead."""
RECENT = 20
"""Steps that the time left is reckoned from."""
SAMPLES_KEY = "s"
"""Prints two samples while a run goes on."""


def screen(*, quiet: bool = False) -> Console:
    """A console that shows text as it is: names, log lines and messages come from outside and are no markup."""
    console = Console(markup=False, emoji=False, highlight=False, quiet=quiet)
    if console.width < NARROWEST:  # COLUMNS=0, of which rich would make empty lines
        console.width = USUAL
    return console


def banner(console: Console, folder: Path, seed: int, lines: Iterable[tuple[str, str]], notes: Iterable[str]) -> None:
    """Before the start: where it goes, who does what, what to know."""
    console.print(Text.assemble((str(folder), "bold"), f"  seed {seed}"), soft_wrap=True)
    for name, value in (*lines, *(("note", text) for text in notes)):
        pair(console, name, value)


def pair(console: Console, name: str, value: str) -> None:
    console.print(f"  {name:<9} {value}", soft_wrap=True)


def note(console: Console, text: str) -> None:
    pair(console, "note", text)


def commands(console: Console, roles: Iterable[tuple[str, Command | ServerPlan]]) -> None:
    """What would be started, as a shell takes it, without secrets."""
    for role, command in roles:
        line = shell(redact(command.env), command.argv)
        console.print(f"\n# {role}\n{line}", soft_wrap=True)


def lines(console: Console, texts: Iterable[str]) -> None:
    for text in texts:
        console.print(text, soft_wrap=True)


def files(console: Console, run: Run) -> None:
    """Where everything of a run is."""
    for name, file in (("files", run.folder), ("picture", run.reward_curve)):
        if file.exists():
            console.print(f"  {name:<16} {file}", soft_wrap=True)
    if look := run.read_outcome().look:
        console.print(f"  {look}", soft_wrap=True)


class Progress:
    """One line about a run, rewritten in place on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, run: Run) -> None:
        self.console, self.run = console, run
        self._live = Live("", console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._printed, self._printed_at = "", float("-inf")
        self._rows: list[Row] = []
        self._offset = 0
        self._judged = 0
        self._warned: set[str] = set()
        self._started = time.monotonic()
        self._keys = Keys()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
            if self._keys.__enter__().active:
                self.say(f"press {SAMPLES_KEY} for two samples of the last step")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._keys.__exit__()
            self._live.stop()

    @property
    def rows(self) -> Sequence[Row]:
        """All steps recorded so far."""
        fresh, self._offset = store.read_new_rows(self.run.metrics, self._offset)
        self._rows += fresh
        return self._rows

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, soft_wrap=True)

    def show(self, line: str) -> None:
        """The line of the moment."""
        if self._live:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        elif line != self._printed and time.monotonic() - self._printed_at >= PLAIN_EVERY_S:
            self._printed, self._printed_at = line, time.monotonic()
            self.say(line)

    def update(self) -> None:
        """Show where the worker is."""
        progress = records.read(self.run.progress, records.Progress) or records.Progress("loading")
        waited = time.monotonic() - self._started
        if progress.phase != "training":
            count = f" {progress.done}/{progress.total} problems" if progress.total else ""
            self.show(f"{progress.phase}{count} | {clock(waited)}")
            return
        rows = self.rows
        self._warn(rows)
        if self._keys.pressed() == SAMPLES_KEY:
            samples.two(self.console, self.run)
        hint = f" | {SAMPLES_KEY}: samples" if self._keys.active else ""
        self.show(
            step_line(Pace.of(rows, progress.total)) + hint if rows else f"training: first step | {clock(waited)}"
        )

    def _warn(self, rows: Sequence[Row]) -> None:
        """Say each sign of ill health once, when it first shows."""
        for end in range(self._judged + 1, len(rows) + 1):
            for name, words in health.shown_by(rows[max(0, end - health.STREAK) : end]):
                if name not in self._warned:
                    self._warned.add(name)
                    self.say(f"warning: {words}")
        self._judged = len(rows)


@dataclass(frozen=True)
class Pace:
    """Where a run that trains is, of `total` steps."""

    step: int
    total: int
    reward: float | None
    """Mean of the last RECENT steps, as is `step_s`."""
    tokens_per_s: float | None
    """Generated in the last step."""
    step_s: float

    @classmethod
    def of(cls, rows: Sequence[Row], total: int) -> Pace:
        last, recent = rows[-1], rows[-RECENT:]
        rewards = [row["reward"] for row in recent if row.get("reward") is not None]
        return cls(
            last["step"],
            total,
            statistics.fmean(rewards) if rewards else None,
            last.get("generated_tokens_per_s"),
            statistics.fmean(row["step_time_s"] for row in recent),
        )

    @property
    def left(self) -> str:
        return clock(self.step_s * (self.total - self.step))


def step_line(pace: Pace) -> str:
    """Step, reward, tokens a second, time left."""
    parts = [f"step {pace.step}/{pace.total}"]
    if pace.reward is not None:
        parts.append(f"reward {pace.reward:.3f}")
    if pace.tokens_per_s:
        parts.append(f"{pace.tokens_per_s:,.0f} tokens/s generated")
    return " | ".join([*parts, f"{pace.step_s:.2f} s a step", f"{pace.left} left"])


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def failure(console: Console, failure: Failure) -> None:
    console.print(f"failed: {failure.class_}", style="bold red")
    console.print(f"  {failure.message}", soft_wrap=True)
    if failure.log:
        console.print(f"  log: {failure.log}", soft_wrap=True)
