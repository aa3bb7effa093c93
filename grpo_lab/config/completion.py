"""Tab completion of `grpo-lab` in bash and zsh: commands and folders by name, keys and choices of groups by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from glob import escape, glob
from importlib.util import find_spec

import hydra
from omegaconf import DictConfig

from grpo_lab.config import compose, upstream
from grpo_lab.config.places import CONF

OVERRIDDEN = ("train", "bench", "plan", "evaluate")
"""Commands that take Hydra's overrides."""
_PASSED_ON = {"grpo": upstream.GRPO, "vllm.engine": upstream.ENGINE, "peft.options": upstream.LORA}

_BASH = r"""_grpo_lab() {
    local line="${COMP_LINE:0:$COMP_POINT}" before candidate
    before="${line##* }"
    # Where = separates words, as in bash, a candidate starts after it.
    case "$before:$COMP_WORDBREAKS" in *=*:*=*) before="${before%=*}=" ;; *) before="" ;; esac
    COMPREPLY=()
    for candidate in $(grpo-lab completion "$line" 2>/dev/null); do
        COMPREPLY+=("${candidate#"$before"}")
    done
    case "${COMPREPLY[*]}" in *[=./]) ;; *) compopt +o nospace 2>/dev/null ;; esac
}
complete -o nospace -o default -F _grpo_lab grpo-lab"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit"
SCRIPTS = {"bash": _BASH, "zsh": f"{_ZSH}\n{_BASH}"}
"""What a shell evaluates once: `eval "$(grpo-lab completion bash)"`."""


def candidates(line: str, commands: Iterable[str]) -> Iterator[str]:
    """Candidates for the last word of a command line, which ends where the cursor is."""
    words = [*line.split(), *([""] if line[-1:].isspace() else [])][1:]
    if len(words) < 2:
        yield from (name for name in commands if name.startswith("".join(words)))
        return
    command, word = words[0], words[-1]
    if command in OVERRIDDEN:
        yield from _passed_on(word)
        _print_overrides(line)
    if command == "evaluate" and "=" not in word:
        yield from (f"{path}/" for path in glob(f"{escape(word)}*") if os.path.isdir(path))


def _passed_on(word: str) -> Iterator[str]:
    """Keys of the dictionaries that are passed on, from the source of TRL, vLLM and peft."""
    parent, _, start = word.rpartition(".")
    classes = _PASSED_ON.get(parent, ())
    if "=" not in start and all(find_spec(package) for package, *_ in classes):
        yield from (f"{parent}.{name}=" for name in upstream.fields(*classes) if name.startswith(start))


def _print_overrides(line: str) -> None:
    """Print Hydra's own candidates. It reads the line from the environment, the program's name first."""
    compose.register()
    os.environ["COMP_LINE"] = line.partition(" ")[2]
    sys.argv = ["grpo-lab", "--shell-completion", "query=bash"]
    _application()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _application(composed: DictConfig) -> None:
    """Never called: a query ends before the application starts."""
