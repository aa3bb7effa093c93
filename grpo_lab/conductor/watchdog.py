"""Whether a run still moves: how long the worker may do one thing before it counts as hanging."""

from __future__ import annotations

import dataclasses
import time

from grpo_lab.config.schema import TimeoutsConfig
from grpo_lab.store import records
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Progress


class Watchdog:
    """Watches progress.json. A step moves when `done` or `phase` changes, a weight transfer when `doing` does."""

    def __init__(self, run: Run, timeouts: TimeoutsConfig) -> None:
        self.run, self.timeouts = run, timeouts
        self._place: Progress | None = None
        self._doing: str | None = None
        self._place_since = self._doing_since = time.monotonic()

    def overdue(self) -> str | None:
        """What was waited for, how long, and which limit that was; None while all moves. To be called often."""
        now, progress = time.monotonic(), records.read(self.run.progress, Progress)
        doing = progress.doing if progress else None
        place = progress and dataclasses.replace(progress, doing=None)
        if place != self._place:
            self._place, self._place_since = place, now
            self._doing_since = now
        if doing != self._doing:
            self._doing, self._doing_since = doing, now
        if doing == "sync":
            key, limit, quiet = "timeouts.sync", self.timeouts.sync, now - self._doing_since
        elif progress:
            key, limit, quiet = "timeouts.step", self.timeouts.step, now - self._place_since
        else:
            key, limit, quiet = "timeouts.startup", self.timeouts.startup, now - self._place_since
        return f"no progress for {quiet:.0f} s {_where(progress)} ({key}={limit:g})" if quiet > limit else None


def _where(progress: Progress | None) -> str:
    if progress is None:
        return "while the trainer starts"
    training = progress.phase == "training"
    # `done` counts whole steps: what hangs is the next one, or what comes after the last.
    place = f"after step {progress.done} of {progress.total}" if training else f"{progress.phase} the training"
    waits = {None: "", "sync": ", sending the weights to vLLM", "generate": ", waiting for completions"}
    return place + waits.get(progress.doing, f", in '{progress.doing}'")
