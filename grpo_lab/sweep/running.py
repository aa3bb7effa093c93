"""From frozen points to ended ones: start what there is room for, watch, try again, end what must end."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from grpo_lab.conductor.signals import handled
from grpo_lab.config.schema import LauncherConfig
from grpo_lab.machine.logs import Log
from grpo_lab.store.folder import Sweep
from grpo_lab.store.records import Failure
from grpo_lab.sweep import job
from grpo_lab.sweep.board import Board
from grpo_lab.sweep.launchers.base import Attempt, Backend, Need, Work
from grpo_lab.sweep.launchers.packing import largest_first
from grpo_lab.sweep.points import Point
from grpo_lab.sweep.track import ENDED, TRANSIENT, Track, judge, write_result

POLL_S = 0.05
TRY_EVERY_S = 5.0
"""A cluster may have room although none of our points has ended."""
PATIENCE_S = 8.0
"""From the request to end until points are ended by force; everything is to be gone within 15 seconds."""


@dataclass
class Stop:
    """How often the user asked to stop, by which signal, and when first."""

    times: int = 0
    number: int = signal.SIGINT
    since: float = 0.0

    @property
    def hard(self) -> bool:
        return self.times > 1 or (self.times == 1 and time.monotonic() - self.since > PATIENCE_S)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """STOPPING: the first lets points save what they have, the second ends them."""
    stop = Stop()

    def on_signal(number: int) -> None:
        stop.since = stop.since or time.monotonic()
        stop.times, stop.number = stop.times + 1, number

    with handled(on_signal):
        yield stop


class Course:
    """The run of a sweep. `pack` gives what a point's process needs, see grpo_lab.sweep.job."""

    def __init__(
        self,
        tracks: Sequence[Track],
        sweep: Sweep,
        backend: Backend,
        settings: LauncherConfig,
        pack: Callable[[Point], bytes],
        board: Board,
    ) -> None:
        self.tracks, self.sweep, self.backend, self.settings = tracks, sweep, backend, settings
        self.pack, self.board = pack, board
        self._asked = False
        self._try_at = 0.0
        """When to try again to start what waits: at once after a point has ended, else now and then."""

    def run(self) -> int | None:
        """Until every point has ended. The number of the signal that ended it early, else None."""
        with stop_signals() as stop, self.board:
            try:
                while any(track.state not in ENDED for track in self.tracks):
                    self._step(stop)
                    self.board.show(self.tracks)
                    time.sleep(POLL_S)
            finally:
                self._end_all()
                self.board.show(self.tracks)
                self.backend.close()
            return stop.number if stop.times else None

    def _step(self, stop: Stop) -> None:
        if stop.times:
            self._wind_down(stop)
        elif time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + TRY_EVERY_S
            self._start_what_fits()
        for track in self._active():
            self._look_at(track, stopping=bool(stop.times))

    def _active(self) -> list[Track]:
        return [track for track in self.tracks if track.attempt is not None]

    def _start_what_fits(self) -> None:
        waiting = [(track.point.need, track) for track in self.tracks if track.state == "waiting"]
        no_room: set[Need] = set()
        for track in largest_first(waiting):
            if track.point.need in no_room:
                continue
            printed = Log(track.log)
            attempt = self.backend.start(self._work(track))
            if attempt is None:
                no_room.add(track.point.need)
            else:
                track.begin(attempt, printed)
                self.board.changed(track)

    def _work(self, track: Track) -> Work:
        point = track.point
        file, returned = self.sweep.job(point.name), self.sweep.returned(point.name)
        job.write(file, self.pack(point))
        returned.unlink(missing_ok=True)
        argv = (sys.executable, "-m", "grpo_lab.sweep.job", str(file), str(returned))
        return Work(point.name, argv, track.log, point.need, timeout_s=self.settings.timeout)

    def _look_at(self, track: Track, *, stopping: bool) -> None:
        attempt = track.attempt
        assert attempt is not None
        assert track.printed is not None
        code = attempt.poll()
        if code is None:
            before = track.state
            track.follow()
            if track.state != before:
                self.board.changed(track)
            self._check_time(track, attempt)
            return
        failure = judge(track.point, code, track.printed)
        if failure is None:
            self._settle(track, "finished")
        elif stopping and failure.class_ == "killed":
            self._settle(track, "interrupted")
        elif failure.class_ in TRANSIENT and track.tries <= self.settings.retries and not stopping:
            self._settle(track, "waiting", failure)
        else:
            self._settle(track, "failed", failure)

    def _check_time(self, track: Track, attempt: Attempt) -> None:
        limit = self.settings.timeout
        if limit is None or track.began is None or time.monotonic() - track.began <= limit:
            return
        attempt.stop()
        message = f"not finished after {limit:g} s (launcher.timeout)"
        self._settle(track, "failed", Failure("timeout", message, str(track.log)))

    def _settle(self, track: Track, state: str, failure: Failure | None = None) -> None:
        track.end(state, failure)
        if state == "waiting":
            track.point.run.result.unlink(missing_ok=True)  # of the try that failed; the next one writes its own
        else:
            self.sweep.job(track.point.name).unlink(missing_ok=True)  # it may hold keys
        self._try_at = 0.0
        if state == "failed" and failure is not None and not track.point.run.result.exists():
            write_result(track.point, state, failure)
        self.board.changed(track)

    def _wind_down(self, stop: Stop) -> None:
        """After a signal: nothing starts any more, what runs is asked to end, then made to."""
        for track in self.tracks:
            if track.state == "waiting":
                self._settle(track, "interrupted")
        if not self._asked:
            self._asked = True
            self.board.say("stopping: points save a checkpoint if they can (once more: at once)")
            for track in self._active():
                assert track.attempt is not None
                track.attempt.ask()
        if stop.hard:
            self._end_all()

    def _end_all(self) -> None:
        """End what still runs, all at the same time."""
        left = self._active()
        if not left:
            return
        with ThreadPoolExecutor(len(left)) as threads:
            list(threads.map(lambda track: track.attempt and track.attempt.stop(), left))
        for track in left:
            self._settle(track, "interrupted")
