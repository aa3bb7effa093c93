"""`python -m grpo_lab.publish runs/<run> publish.repo_id=owner/name`: a finished run's policy and card on the Hub.

Without publish.repo_id it writes the card and says what would go. A run started with publish.repo_id= does the same at
its end. What goes: the last checkpoint's weights and tokenizer, the card, and config.yaml, whose secrets were left out
when it was written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from grpo_lab.conductor.console import screen
from grpo_lab.conductor.publishing import PublishFailed, publish
from grpo_lab.config import output
from grpo_lab.config.cli import explain, refuse
from grpo_lab.config.errors import RequestError


def main() -> None:
    """Exit code 0: done. 1: the Hub did not take it. 2: refused."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo_lab.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    output.settle()
    try:
        publish(asked.folder, asked.overrides, screen())
    except (RequestError, OmegaConfBaseException) as error:
        sys.exit(refuse(explain(error)))
    except PublishFailed as error:
        print(f"not published: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
