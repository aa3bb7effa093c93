"""Whether a run still moves: how long the worker may do one thing before it counts as hanging."""

from __future__ import annotations

import time

from grpo_lab.config.schema import TimeoutsConfig
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Row, Run


class Watchdog:
    """Watches progress.json. A step moves when `done` or `phase` changes, a weight transfer when `doing` does."""

    def __init__(self, run: Run, timeouts: TimeoutsConfig) -> None:
        self.run, self.timeouts = run, timeouts
        self._place: Row = {}
        self._doing: str | None = None
        self._place_since = self._doing_since = time.monotonic()

    def overdue(self) -> str | None:
        """What was waited for, how long, and which limit that was; None while all moves. To be called often."""
        now, told = time.monotonic(), store.read_json(self.run.progress) or {}
        doing = told.pop("doing", None)
        if told != self._place:
            self._place, self._place_since = told, now
            self._doing_since = now
        if doing != self._doing:
            self._doing, self._doing_since = doing, now
        if doing == "sync":
            key, limit, quiet = "timeouts.sync", self.timeouts.sync, now - self._doing_since
        elif told:
            key, limit, quiet = "timeouts.step", self.timeouts.step, now - self._place_since
        else:
            key, limit, quiet = "timeouts.startup", self.timeouts.startup, now - self._place_since
        return f"no progress for {quiet:.0f} s {_where(told, doing)} ({key}={limit:g})" if quiet > limit else None


def _where(told: Row, doing: str | None) -> str:
    if not told:
        return "while the trainer starts"
    training = told["phase"] == "training"
    # `done` counts whole steps: what hangs is the next one, or what comes after the last.
    place = f"after step {told['done']} of {told['total']}" if training else f"{told['phase']} the training"
    kinds = {None: "", "sync": ", sending the weights to vLLM", "generate": ", waiting for completions"}
    return place + kinds.get(doing, f", in '{doing}'")
