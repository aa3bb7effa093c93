"""Single keys, read from the terminal while a run goes on."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Any


class Keys:
    """Reads keys without Enter where the process is in the foreground of a terminal; elsewhere there are none."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if _in_foreground():
            self._before = termios.tcgetattr(0)
            tty.setcbreak(0)  # Ctrl-C stays a signal
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None and _in_foreground():
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    @property
    def active(self) -> bool:
        return self._before is not None

    def pressed(self) -> str:
        """The key that was pressed last, empty where none was."""
        key = b""
        while self.active and _in_foreground() and select.select([0], [], [], 0)[0]:
            if not (read := os.read(0, 1)):
                break
            key = read
        return key.decode(errors="replace")


def _in_foreground() -> bool:
    """Whether stdin is a terminal that this process may read and set: in the background either would stop it."""
    try:
        return sys.stdin is not None and os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # the terminal hung up, or is not the controlling one
        return False
