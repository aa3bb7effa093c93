"""`grpo-lab COMMAND ...`: the commands under one name; `grpo-lab train` is `python -m grpo_lab.train`."""

from __future__ import annotations

import sys
from importlib import import_module

from grpo_lab import __version__
from grpo_lab.config.errors import nearest

COMMANDS = {
    "train": "train a policy; --multirun sweeps, dry_run=true shows the plan",
    "bench": "measure how fast a layout generates",
    "evaluate": "pass@1 and pass@k of a run's checkpoint or a model",
    "plan": "every layout of this machine or hardware=: what fits, predicted speed",
    "show": "what the policy wrote, coloured by reward: --worst, --problem N, --changed, --follow",
    "report": "tables and plots of runs and sweeps",
    "publish": "a finished run's policy and model card on the Hugging Face Hub",
}
HELP = "\n".join(
    [
        "usage: grpo-lab COMMAND [KEY=VALUE | FOLDER | OPTION]...",
        "",
        *(f"  {name:<12}{purpose}" for name, purpose in COMMANDS.items()),
        f"  {'completion':<12}bash or zsh: the code that completes on <TAB>",
        "",
        "grpo-lab COMMAND --help says more, grpo-lab --version which one this is.",
    ]
)


def main() -> None:
    """Exit code 2 for an unknown command, else the command's own."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP)
    elif command == "--version":
        print(f"grpo-lab {__version__}")
    elif command == "completion":
        complete(" ".join(arguments))
    elif command in COMMANDS:
        sys.argv = [f"grpo-lab {command}", *arguments]
        import_module(f"grpo_lab.{command}").main()
    else:
        print(f"error: {command}: no such command; {nearest(command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def complete(line: str) -> None:
    """Print the code for a shell, or the candidates for the last word of a command line."""
    from grpo_lab.config import completion

    if line in completion.SCRIPTS:
        print(completion.SCRIPTS[line])
    else:
        print(*completion.candidates(line, (*COMMANDS, "completion")))


if __name__ == "__main__":
    main()
