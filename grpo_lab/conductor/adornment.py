"""What stands beside a result and is no part of it: pictures, cards, uploads. None changes how a run has ended."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console


def adorn(console: Console, lacking: str, step: Callable[[], object], again: str = "") -> None:
    """Take a step once result.json is written; whatever goes wrong in it is two lines on the terminal.

    `lacking`: what the run then does not have; `again`: the command that repeats the step.
    """
    try:
        step()
    except Exception as error:  # noqa: BLE001 - of matplotlib, the Hub or a disk: the result stands all the same
        console.print(lacking, style="bold red")
        lines = [" ".join(f"{type(error).__name__}: {error}".split()), *([f"again: {again}"] if again else [])]
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)
