"""Each reward is called once before anything starts, in another process, which may import torch.

`python -m grpo_lab.conductor.rehearsal` is that process: a pickled :class:`Call` comes in, what went wrong goes out.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pickle
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lab.config.errors import BadReward
from grpo_lab.config.schema import Config

PATIENCE_S = 60.0
"""Time limit of all rewards of a run together."""
MARK = "grpo-lab:"
OURS = ("_target_", "weight")
COMPLETION = "<think>\nTwo and two make four.\n</think>\n<answer>\n4\n</answer>"
WITH_A_MODEL = ("path", "url")
"""Keys of shipped rewards that load or ask another model, and whose places are checked without it."""


@dataclass(frozen=True)
class Call:
    rewards: Mapping[str, Mapping[str, Any]]
    row: Mapping[str, Any]
    """First row of the training data."""
    in_plain_text: bool
    """Whether completions are texts, not chat messages."""
    times: int
    """Completions of the row: rewards may compare those of a group."""


def check(config: Config, row: Mapping[str, Any], *, in_plain_text: bool) -> tuple[str, ...]:
    """Notes on what was not seen.

    Raises:
        BadReward: for a reward that raises, or gives no numbers, with file and line.
    """
    call = Call(_rehearsed(config), row, in_plain_text, int(config.grpo["num_generations"]))
    if not call.rewards or not config.rehearse:
        return ()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        ended = subprocess.run(
            (sys.executable, "-m", __name__),
            input=pickle.dumps(call),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**env, **{key: str(value) for key, value in config.vllm.env.items()}},
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return (f"{', '.join(call.rewards)}: no reward within {PATIENCE_S:g} s, so none was tried before the start",)
    _, mark, last = ended.stdout.decode(errors="replace").rpartition(MARK)
    wrong = json.loads(last) if mark else f"{', '.join(call.rewards)}: ended the process, exit code {ended.returncode}"
    if wrong:
        raise BadReward(f"{wrong}\nrehearse=false starts without trying the rewards")
    return ()


def _rehearsed(config: Config) -> dict[str, Mapping[str, Any]]:
    """The user's own rewards, and on the user's own data the shipped ones, which tests hold on the shipped data."""
    shipped_data = str(config.data["_target_"]).startswith("grpo_lab.data.") and not config.data.get("path")
    return {
        name: settings
        for name, settings in config.rewards.items()
        if not str(settings["_target_"]).startswith("grpo_lab.rewards.")
        or not (shipped_data or any(settings.get(key) for key in WITH_A_MODEL))
    }


def problem(call: Call) -> str | None:
    """What is wrong with the first reward that does not work."""
    from hydra.utils import get_method

    given = _given(call)
    for name, settings in call.rewards.items():
        parameters = {key: value for key, value in settings.items() if key not in OURS}
        try:
            function = get_method(str(settings["_target_"]))
            values = function(**{**given, **parameters})
            values = asyncio.run(values) if inspect.iscoroutine(values) else values
            wrong = _wrong(list(values), call.times)
            wrong = f"{_defined(function)}{wrong}" if wrong else None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's function raises is told
            wrong = f"{_place(error)}: raised {error!r}"
        if wrong:
            return f"rewards.{name}: {wrong}, for a made-up completion of a training row"
    return None


def _given(call: Call) -> dict[str, Any]:
    """What TRL passes to a reward, once for each completion."""
    completion: Any = COMPLETION if call.in_plain_text else [{"role": "assistant", "content": COMPLETION}]
    prompt, *others = (("prompts", call.row["prompt"]), *((k, v) for k, v in call.row.items() if k != "prompt"))
    each = dict([prompt, ("completions", completion), ("completion_ids", list(range(len(COMPLETION) // 4))), *others])
    return {
        **{name: [value] * call.times for name, value in each.items()},
        "trainer_state": _State(),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


class _State:
    """transformers' TrainerState of the first step, imported by rewards that look at it."""

    def __getattr__(self, name: str) -> Any:
        from transformers import TrainerState

        return getattr(TrainerState(max_steps=1), name)


def _wrong(values: list[Any], count: int) -> str | None:
    if len(values) != count:
        return f"returned {len(values)} values for {count} completions"
    bad = [value for value in values if value is not None and not isinstance(value, int | float)]
    return f"returned {bad[0]!r}, not a number or None" if bad else None


def _defined(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}: " if code else ""


def _place(error: BaseException) -> str:
    """File and line of the user's code, or of what it called where none is on the way."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    file, line = next(_of_the_user(reversed(places)), places[-1])
    return f"{file}, line {line}"


def _of_the_user(places: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    installed = [*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")), "<", __file__]
    return (place for place in places if not place[0].startswith(tuple(installed)))


if __name__ == "__main__":
    print(f"\n{MARK}{json.dumps(problem(pickle.loads(sys.stdin.buffer.read())))}")
