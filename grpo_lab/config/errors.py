"""What a user sees instead of a traceback: a wrong request, shown as one to three lines, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request cannot be met. The message names the value and the way out."""


class PointFailed(RuntimeError):
    """A point of a sweep did not finish; what there is to say has been said. Exit code 1."""


class RunFailed(RuntimeError):
    """The run ended without finishing; what there is to say has been said. Carries the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(wrong: str, valid: Iterable[str], *, show: int = 8, ending: str = "") -> str:
    """`did you mean 'x'?` where something is close, otherwise the valid ones (at most `show` of them). `ending`
    follows the name that is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}{ending}'?"
    more = f", ... ({len(names)} in all)" if len(names) > show else ""
    return f"valid: {', '.join(names[:show])}{more}"
