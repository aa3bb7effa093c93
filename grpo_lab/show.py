"""`python -m grpo_lab.show runs/<run>`: what the policy wrote, coloured by reward.

Without an option it shows a few of the last step. A reward is the weighted sum. What a terminal would act on, as escape
sequences, is shown and not done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_lab.conductor import samples
from grpo_lab.conductor.console import screen
from grpo_lab.conductor.show import show
from grpo_lab.config import output
from grpo_lab.config.cli import refuse
from grpo_lab.config.errors import RequestError
from grpo_lab.store.folder import Run


def main() -> None:
    """Exit code 0, or 2 where there is nothing to show or the request is wrong."""
    asked = parser().parse_args()
    output.settle(outlast=False)
    try:
        show(screen(), Run(asked.folder), asked)
    except RequestError as error:
        sys.exit(refuse(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m grpo_lab.show", description=__doc__)
    options.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, finished or not")
    what = options.add_mutually_exclusive_group()
    for name, purpose in (("worst", "lowest"), ("best", "highest")):
        what.add_argument(
            f"--{name}", type=_count, nargs="?", const=5, metavar="K", help=f"the K {purpose} rewards (5)"
        )
    what.add_argument("--problem", type=_count, metavar="N", help="one problem over the steps, by the number shown")
    what.add_argument(
        "--changed", action="store_true", help="held-out problems: right before and wrong after, and the reverse"
    )
    what.add_argument("--follow", action="store_true", help="two samples of each step while the run goes on")
    options.add_argument("--step", type=_count, metavar="S", help="of this step only (default: the last, or all)")
    options.add_argument("--count", type=_count, metavar="K", help="at most so many samples")
    options.add_argument(
        "--full", action="store_true", help=f"whole texts (default: {samples.SHORT} characters of each)"
    )
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: not a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    main()
