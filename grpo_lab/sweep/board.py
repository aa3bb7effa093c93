"""What a person sees of a sweep: one live table on a terminal, a plain line for each change elsewhere."""

from __future__ import annotations

import collections
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from grpo_lab.conductor.console import RECENT, Pace, clock
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Row
from grpo_lab.store.records import Failure, Progress
from grpo_lab.sweep.points import Point
from grpo_lab.sweep.track import Track

REFRESH_S = 0.5
SHOWN = 8
"""Points shown of those that wait, and of those that have ended, when there are more than fit."""
REASON_LINES = 6
STYLES = {"finished": "green", "failed": "bold red", "infeasible": "yellow", "interrupted": "yellow", "running": "bold"}


class Board:
    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._watched: dict[str, _Watch] = {}
        self._shown_at = float("-inf")

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        say(self.console, line)

    def changed(self, track: Track) -> None:
        """A point has changed its state."""
        if self._live is None:
            where = f" on {track.attempt.where}" if track.attempt and track.state == "running" else ""
            took = f" after {clock(track.seconds)}" if track.attempt is None and track.seconds else ""
            why = f": {headline(track.failure)}" if track.failure else ""
            self.say(f"{time.strftime('%H:%M:%S')}  {track.point.name}  {track.state}{where}{took}{why}")

    def show(self, tracks: Sequence[Track]) -> None:
        if self._live is None or time.monotonic() - self._shown_at < REFRESH_S:
            return
        self._shown_at = time.monotonic()
        self._live.update(self.table(tracks), refresh=True)

    def table(self, tracks: Sequence[Track]) -> Table:
        counts = collections.Counter(track.state for track in tracks)
        title = ", ".join(f"{count} {state}" for state, count in counts.items())
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in ("point", "state", "where, or why"):
            table.add_column(column, overflow="fold")
        for column in ("step", "reward", "tokens/s", "time left"):
            table.add_column(column, justify="right", no_wrap=True)
        for track in shown(tracks):
            table.add_row(*self._cells(track), style=STYLES.get(track.state, "dim"))
        return table

    def _cells(self, track: Track) -> list[str]:
        where = track.attempt.where if track.attempt else headline(track.failure) if track.failure else ""
        again = f" (try {track.tries})" if track.tries > 1 and track.attempt else ""
        facts = self._watch(track).facts() if track.state == "running" and track.point.config else ("", "", "", "")
        return [track.point.name, track.state + again, where, *facts]

    def _watch(self, track: Track) -> _Watch:
        return self._watched.setdefault(f"{track.point.name} {track.tries}", _Watch(track))


class _Watch:
    """Reads a running point's metrics as they grow."""

    def __init__(self, track: Track) -> None:
        self._run = track.point.run
        self._rows: list[Row] = []
        self._offset = 0

    def facts(self) -> tuple[str, str, str, str]:
        """Step, reward, generated tokens a second, time left; what the worker does before it trains."""
        progress = records.read(self._run.progress, Progress)
        if progress is None:
            return "", "", "", ""
        if progress.phase != "training":
            return progress.phase, "", "", ""
        fresh, self._offset = store.read_new_rows(self._run.metrics, self._offset)
        self._rows = (self._rows + fresh)[-RECENT:]
        return facts(Pace.of(self._rows, progress.total)) if self._rows else (f"0/{progress.total}", "", "", "")


def facts(pace: Pace) -> tuple[str, str, str, str]:
    reward = "" if pace.reward is None else f"{pace.reward:.3f}"
    speed = f"{pace.tokens_per_s:,.0f}" if pace.tokens_per_s else ""
    return f"{pace.step}/{pace.total}", reward, speed, pace.left


def headline(failure: Failure) -> str:
    """Class and first line of a failure."""
    return f"{failure.class_}: {failure.message.splitlines()[0]}"


def shown(tracks: Sequence[Track]) -> list[Track]:
    """All that run, the last that have ended by running, the next that wait."""
    active = [track for track in tracks if track.attempt is not None]
    waiting = [track for track in tracks if track.state == "waiting"]
    ended = [track for track in tracks if track.tries and track.attempt is None and track.state != "waiting"]
    return ended[-SHOWN:] + active + waiting[:SHOWN]


def summary(console: Console, tracks: Sequence[Track], folder: Path) -> None:
    """The end of a sweep: how many points ended how, and of each that did not finish, why."""
    states = [f"{track.state} before" if track.before else track.state for track in tracks]
    counts = ", ".join(f"{count} {state}" for state, count in collections.Counter(states).items())
    say(console, f"{len(tracks)} points: {counts}")
    for track in tracks:
        if track.failure is None:
            continue
        kind = "" if track.failure.class_ == track.state else f": {track.failure.class_}"
        say(console, f"  {track.point.name}  {track.state}{kind}")
        for line in track.failure.message.splitlines()[:REASON_LINES]:
            say(console, f"    {line}")
        if track.failure.log:
            say(console, f"    log: {track.failure.log}")
    say(console, f"  files: {folder}   table: python -m grpo_lab.report {shlex.quote(str(folder))}")


def plan(
    console: Console, frozen: Sequence[Point], folder: Path, *, exclusive: bool = False, searching: bool = False
) -> None:
    """What would run, for `dry_run=true`; of a search the points that it begins with."""
    say(console, f"{folder}: {len(frozen)} points{', one at a time (launcher.exclusive)' if exclusive else ''}")
    for point in frozen:
        needs = f"{point.need.gpus} GPUs" if point.need.gpus else f"{point.need.cores} cores"
        say(console, f"  {point.name}  {f'infeasible: {point.refused}' if point.refused else needs}")
    if searching:
        say(console, "  then others, by what these measure")


def say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)
