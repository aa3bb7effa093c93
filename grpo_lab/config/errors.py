"""Errors that a user sees as one to three lines instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request cannot be met (exit code 2). The message names the value and the way out."""

    failure_class = "infeasible"
    """Class of the failure in the result of a sweep's point that is refused so."""


class BadModel(RequestError):
    """The checkpoint is not there, or cannot be used."""

    failure_class = "bad_model"


class BadReward(RequestError):
    """A reward does not work."""

    failure_class = "bad_reward"


class PointFailed(RuntimeError):
    """A point of a sweep did not finish, which is already on the terminal. Exit code 1."""


class RunFailed(RuntimeError):
    """The run did not finish, which is already on the terminal. Carries the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(wrong: str, valid: Iterable[str], *, show: int = 8, ending: str = "") -> str:
    """`did you mean 'x'?` for a close name, otherwise at most `show` of the valid names. `ending` follows the close
    name."""
    names = sorted(valid)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}{ending}'?"
    more = f", ... ({len(names)} in all)" if len(names) > show else ""
    return f"valid: {', '.join(names[:show])}{more}"
