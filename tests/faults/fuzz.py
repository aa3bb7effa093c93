"""What the fuzz tests share: how many cases, strange values, and the real command in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from grpo_lab import train
from grpo_lab.config import upstream
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config
from grpo_lab.planner.algorithms import algorithm

NIGHTLY = os.environ.get("GRPO_LAB_FUZZ") == "nightly"
"""Many random cases, others each night; otherwise the same few each time."""
PATIENCE_S = 60
"""What takes longer is a hang; a case takes a tenth of a second."""


def cases(few: int, many: int) -> settings:
    """How many cases a test tries, in `make test` and at night."""
    return settings(
        max_examples=many if NIGHTLY else few,
        derandomize=not NIGHTLY,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).map(
    lambda made: made.lstrip("-")
)
"""As a command line can have it, and no option of Hydra's."""
number = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, -(2**31), 2**63, 10**18, 10**30, 0.5, -0.0, 1e-300, 1e308]),
    st.floats(),
)
ODD = [
    *(
        "null",
        "",
        "???",
        "''",
        '""',
        "'",
        '"',
        "\\",
        "[",
        "]",
        "{",
        "}",
        "[]",
        "{}",
        "[1,2]",
        "[[]]",
        "{a:1}",
        "{a:{b:[]}}",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "1e400",
        "true",
        "off",
        "0x10",
        "1_000",
        "007",
        "${",
        "}",
        "${seed}",
        "${nope}",
        "${oc.env:HOME}",
    ),
    *(
        "${oc.env:NO_SUCH_VARIABLE}",
        "${.seed}",
        "${..}",
        "${name}",
        "${now:%Y}",
        "${last_part:null}",
        "$x",
        "$(id)",
        "`id`",
    ),
    *(
        "1,2",
        "range(3)",
        "choice(1,2)",
        "interval(0,1)",
        "glob(*)",
        "a:b",
        "a=b",
        "/",
        "..",
        "../x",
        "./x",
        "~",
        "/dev/null",
    ),
    *("*", "|", "é", "日本", "\u202e", "\ufeff", "\n", "a\nb", "\udcff", "x" * 300, "[" * 60, "${" * 40, "{" * 200),
]
"""Values that mean something to a shell, to YAML, to Hydra's grammar or to a file system."""
value = st.one_of(
    st.sampled_from(ODD), number.map(str), text, text.map(lambda t: f'"{t}"'), text.map(lambda t: f"'{t}'")
)


def _keys(kind: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        yield prefix + field.name
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            yield from _keys(default, f"{prefix}{field.name}.")


OPTIONS = [
    *_keys(Config),
    *(f"grpo.{name}" for name in upstream.fields(*algorithm("grpo").config_classes)),
    *(f"vllm.engine.{name}" for name in upstream.fields(*upstream.ENGINE)),
    *(f"peft.options.{name}" for name in upstream.fields(*upstream.LORA)),
    *(
        "vllm.env.X",
        "rewards.accuracy.weight",
        "rewards.accuracy.timeout_s",
        "rewards.format._target_",
        "rewards.x._target_",
    ),
    *("data._target_", "data.seed", "data.difficulty", "data.train_size", "data.test_size", "data.system_prompt"),
    *(
        "data.max_prompt_tokens",
        "data.parts",
        "data.parts.a",
        "data.columns",
        "rewards.accuracy",
        "model.architecture.hidden_size",
    ),
]
NUMBERS = [
    *(
        "seed",
        "nodes",
        "gpus",
        "trainer_gpus",
        "warmup_steps",
        "vllm.tp",
        "vllm.dp",
        "vllm.max_model_len",
        "eval.problems",
    ),
    *(
        "vllm.gpu_memory_utilization",
        "vllm.check_sync_every",
        "vllm.max_logp_difference",
        "timeouts.step",
        "timeouts.startup",
    ),
    *("launcher.gpus_per_job", "launcher.max_parallel", "launcher.timeout", "launcher.retries", "model.parameters"),
    *("grpo.generation_batch_size", "grpo.num_generations", "grpo.per_device_train_batch_size", "grpo.max_steps"),
    *("grpo.max_completion_length", "grpo.learning_rate", "grpo.temperature", "grpo.beta", "grpo.save_steps"),
    *("data.train_size", "data.test_size", "data.seed", "data.difficulty", "rewards.accuracy.weight"),
]
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
}


@st.composite
def _assignment(draw: st.DrawFn) -> str:
    key = draw(st.one_of(st.sampled_from(OPTIONS), st.sampled_from(OPTIONS), text))
    prefix = draw(st.sampled_from(["", "", "", "", "", "+", "++", "~"]))
    return f"{prefix}{key}={draw(value)}"


@st.composite
def _number(draw: st.DrawFn) -> str:
    """What has the right type most of the time, and so comes further."""
    return f"{draw(st.sampled_from(NUMBERS))}={draw(number)}"


@st.composite
def _choice(draw: st.DrawFn) -> str:
    group = draw(st.sampled_from(sorted(GROUPS)))
    return f"{group}={draw(st.one_of(st.sampled_from(GROUPS[group]), st.sampled_from(GROUPS[group]), value))}"


overrides = st.lists(
    st.one_of(_number(), _number(), _assignment(), _assignment(), _choice(), text), min_size=1, max_size=4
)


@dataclasses.dataclass
class Ended:
    code: int
    out: str
    err: str


class Hang(BaseException):
    """No Exception, so that no refusal is made of it."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises Hang in the block when it takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: str, cwd: Path) -> Ended:
    """`python -m grpo_lab.train` in this process, with streams as strict as a terminal's."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    argv, before, code = sys.argv, Path.cwd(), 0
    sys.argv = ["train", *arguments]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), at_most(PATIENCE_S):
            train.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = argv
        os.chdir(before)
    for stream in (out, err):
        stream.flush()
    return Ended(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def check_manners(ended: Ended, folder: Path) -> None:
    """Done, or refused in one to three lines; nothing is left behind."""
    said = ended.err.strip()
    assert ended.code in (0, 2), (ended.code, said)
    assert "Traceback" not in ended.out + ended.err, ended
    if ended.code == 2:
        assert said.startswith("error: "), said
        assert 1 <= len(said.splitlines()) <= 3, said
        assert len(said) < 3000, said
    assert not any(folder.iterdir()), sorted(folder.rglob("*"))
