"""Hydra's command line, where a wrong request ends with one to three lines and exit code 2, never with a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from grpo_lab.config import output, shelf
from grpo_lab.config.errors import BadModel, PointFailed, RequestError, RunFailed, nearest
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config


def run_app(app: Callable[[], Any]) -> int:
    """Run a `hydra.main` function; the exit code of the process.

    Hydra prints its own errors and ends the process itself unless HYDRA_FULL_ERROR is set: then they reach us. A user
    who sets it wants the traceback and gets it.
    """
    output.settle()
    sys.argv[1:] = quoted(sys.argv[1:])
    if "HYDRA_FULL_ERROR" in os.environ:
        app()
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        app()
    except (HydraException, OmegaConfBaseException, MissingConfigException, RequestError) as error:
        return refuse(explain(error))
    except PointFailed:
        return 1
    except KeyboardInterrupt:  # while nothing runs yet, or not any more: a job has its own way
        return INTERRUPTED
    except RAW as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return _full(error)
        # hydra-optuna-sweeper 1.3 asks for the best of its trials although none has a value.
        if "No trials are completed yet" in str(error):
            print("error: no trial of the search has a value", file=sys.stderr)
            return 1
        if not _of_hydra(error):
            raise
        return refuse(explain(error))
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return 0


RAW = (ValueError, TypeError, AttributeError, LookupError, AssertionError, RecursionError, OSError, yaml.YAMLError)
"""What Hydra 1.3, OmegaConf 2.3 and PyYAML raise, beside errors of their own, for a request that they cannot read."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
_READERS = ("hydra", "omegaconf", "antlr4", "yaml")


def _of_hydra(error: BaseException) -> bool:
    """Whether the readers of the request raised the error, called by this module or one of the two that hand over to
    them, and by no other code of ours."""
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in names if name == "__main__" or name.startswith("grpo_lab.")]
    reading = any(name.partition(".")[0] in _READERS for name in names[-4:])
    return reading and ours[-1] in ("grpo_lab.config.cli", "grpo_lab.config.compose", "grpo_lab.sweep.composer")


_SLICE = re.compile(r"(.*\bdata\.(?:parts\.\w+\.)?(?:train|test)=)([^\"'\[]+\[[^\"']*)")


def quoted(arguments: list[str]) -> list[str]:
    """Put the slice of `data.train=train[:10%]` in quotes, as Hydra wants it; commas separate values of a sweep."""

    def quote(argument: str) -> str:
        match = _SLICE.fullmatch(argument)
        return match[1] + ",".join(f'"{part}"' for part in match[2].split(",")) if match else argument

    return [_path(quote(argument)) for argument in arguments]


_PATHS = ("name", "runs_dir", "model", "model.path", "data.path")


def _path(argument: str) -> str:
    """A path or name with letters that Hydra would not read, in quotes; `~/` as the folder that it stands for."""
    key, _, value = argument.partition("=")
    if key not in _PATHS or not value:
        return argument
    if value.startswith("~/"):
        argument, value = f"{key}={os.path.expanduser(value)}", os.path.expanduser(value)
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        if "," in value and not Path(value).exists():
            return argument  # values of a sweep
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return argument


def refuse(message: str) -> int:
    """Print a refusal and return its exit code."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def _full(error: OSError) -> int:
    """Say that there is no room; the exit code that goes with it."""
    print(f"error: {error}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """End the process by SystemExit, which Hydra passes on silently, at a refusal, a failed run, Ctrl-C or a full disk
    in this block. Paths are relative to the directory in which the command was started, whatever hydra.job.chdir is."""
    output.settle()
    if HydraConfig.initialized():
        os.chdir(HydraConfig.get().runtime.cwd)
    try:
        yield
    except (RequestError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(explain(error)))
    except RunFailed as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        sys.exit(_full(error))


LINES, WIDTH = 3, 1000
"""Longest refusal: values can be of any length and hold line breaks."""


def explain(error: BaseException) -> str:
    """One to three lines for an error of Hydra or OmegaConf, with the nearest valid key or choice."""
    lines = _explained(error).strip().splitlines() or [f"cannot read the request ({type(error).__name__})"]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"... ({len(lines) - LINES + 1} more lines)"]
    return "\n".join(line if len(line) <= WIDTH else f"{line[:WIDTH]}..." for line in lines)


def _explained(error: BaseException) -> str:
    chain = _chain(error)
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            return _unknown_choice(link.missing_cfg_file)
    for link in chain:
        if isinstance(link, ConfigAttributeError | ConfigKeyError) and link.full_key:
            return _unknown_key(str(link.full_key))
    for link in chain:
        if isinstance(link, MissingMandatoryValue):
            return f"{link.full_key}: a value is needed"
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            reason = next(iter(str(link).splitlines()), type(link).__name__)
            return f"{link.full_key}: {reason.rpartition('raised while resolving interpolation: ')[2]}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}; an override is key=value"
    if refusal := next((link for link in chain if isinstance(link, RequestError)), None):
        classed = refusal.failure_class != RequestError.failure_class
        return f"{refusal.failure_class}: {refusal}" if classed else str(refusal)
    reason = next((text for link in chain if (text := str(link).strip())), "")
    return "\n".join(reason.splitlines()[:LINES])


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes. OmegaConf 2.3 makes a ring of them for a YAML key that is null."""
    chain, link = [error], error.__cause__
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    return chain


def _unknown_choice(file: str) -> str:
    group, _, choice = file.removesuffix(".yaml").rpartition("/")
    if group == "model":
        return f"{BadModel.failure_class}: {shelf.unknown(choice)}"
    options = [path.stem for path in (CONF / group).glob("*.yaml")]
    return f"{group}={choice}: no such option; {nearest(choice, options)}"


def _unknown_key(full_key: str) -> str:
    """Name the nearest of the valid keys beside an unknown key."""
    parent, _, _ = full_key.rpartition(".")
    schema = OmegaConf.structured(Config)
    node = OmegaConf.select(schema, parent) if parent else schema
    valid = [str(key) for key in node] if OmegaConf.is_dict(node) else []
    key = full_key.rpartition(".")[2]
    return f"{full_key}: no such key; {nearest(key, valid)}" if valid else f"{full_key}: no such key"
