"""`python -m grpo_lab.evaluate runs/<run> data=gsm8k evaluate.k=1,4,16`: pass@1 and pass@k of a policy.

A folder is a run (its last checkpoint, or evaluate.checkpoint=before or =STEP), one of its checkpoints, or a model;
without one, model= says which. All else are overrides of the run's config. Each further folder is compared with the
first one over the same problems. The same command again goes on where a killed one was, and shows a finished one.
"""

from __future__ import annotations

import argparse

from grpo_lab.conductor.console import screen
from grpo_lab.conductor.evaluate import evaluate
from grpo_lab.conductor.request import read_words
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import exit_codes

configuration.register()


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo_lab.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="FOLDER|KEY=VALUE")
    folders, overrides = read_words(parser.parse_args().words)
    with exit_codes():
        evaluate(folders, overrides, screen())


if __name__ == "__main__":
    main()
