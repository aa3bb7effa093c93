"""Random requests through the real command: a plan, or a refusal of one to three lines and exit code 2."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo_lab.config import compose as configuration
from grpo_lab.config.redaction import redact
from grpo_lab.config.schema import Config, ModelConfig
from grpo_lab.store import folder as store
from tests.conftest import cli
from tests.faults.fuzz import GROUPS, NIGHTLY, ODD, Ended, cases, check_manners, command, overrides, text, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty, and to stay so."""
    return tmp_path_factory.mktemp("empty")


@cases(few=100, many=4000)
@given(overrides)
def test_any_override_is_planned_or_refused(folder: Path, asked: list[str]) -> None:
    check_manners(command(*asked, "dry_run=true", cwd=folder), folder)


def test_a_sample_of_them_is_treated_alike_by_the_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    random.seed(None if NIGHTLY else 0)
    for asked in random.sample([odd for odd in ODD if "\udcff" not in odd], 30 if NIGHTLY else 4):
        ended = cli(f"model={asked}", f"seed={asked}", "dry_run=true", cwd=tmp_path)
        check_manners(Ended(ended.returncode, ended.stdout, ended.stderr), tmp_path)


tree = st.recursive(
    st.one_of(text, st.integers(), st.floats(), st.booleans(), st.none(), st.sampled_from(ODD)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.one_of(text, st.sampled_from(["seed", "model", "grpo", "defaults", "_target_", "vllm"])), inner
        )
    ),
    max_leaves=8,
)
HEADS = [
    "",
    "# @package _global_\n",
    "# @package rewards.x\n",
    "# @package \n",
    "defaults:\n  - ",
    "---\n",
    "%YAML 9\n",
    "\ufeff",
]
pieces = st.lists(
    st.sampled_from(
        ["a: ", "- ", "\n", "  ", "\t", "&x ", "*x", "!!python/object:os.system ", "{", "[", "|", "? ", ": "]
    )
)
yaml = st.one_of(
    st.tuples(st.sampled_from(HEADS), tree.map(json.dumps)).map("".join),
    st.tuples(st.sampled_from(HEADS), pieces.map("".join), text).map("".join),
).map(lambda made: made.encode(errors="surrogateescape"))


@cases(few=40, many=1000)
@given(st.sampled_from(sorted(GROUPS)), st.one_of(yaml, st.binary(max_size=20)))
def test_any_yaml_is_used_or_refused(tmp_path_factory: pytest.TempPathFactory, group: str, content: bytes) -> None:
    place = tmp_path_factory.mktemp("own")
    (place / "conf" / group).mkdir(parents=True)
    (place / "conf" / group / "mine.yaml").write_bytes(content)
    (place / "cwd").mkdir()
    chosen = f"{group}=[mine]" if group == "rewards" else f"{group}=mine"
    ended = command("-cd", str(place / "conf"), f"+{chosen}", "dry_run=true", cwd=place / "cwd")
    if ended.code != 2:
        ended = command("-cd", str(place / "conf"), chosen, "dry_run=true", cwd=place / "cwd")
    check_manners(ended, place / "cwd")
    shutil.rmtree(place)


key = st.text(min_size=1, max_size=6).filter(str.isprintable)
plain = st.recursive(
    st.one_of(
        st.text(max_size=8), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.sampled_from(ODD)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=3),
    max_leaves=6,
)


NEXT_LINE = "\x85"
"""PyYAML 6 writes it as a line break and reads a space."""


@cases(few=30, many=2000)
@given(st.dictionaries(key, plain, max_size=3), value)
def test_a_worker_reads_what_was_asked(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], name: str
) -> None:
    """`config.yaml` gives back every value, be it an interpolation by its looks, a number in quotes or a smile."""
    data = json.loads(json.dumps(data).encode(errors="replace"))
    assume(redact(data) == data and "???" not in str(data) and repr(NEXT_LINE)[1:-1] not in repr(data))
    target = name.encode(errors="replace").decode().replace("???", "").replace(NEXT_LINE, "")
    model = ModelConfig(name="x", path="x")
    config = Config(model=model, data={"_target_": "x", **data}, rewards={"x": {"_target_": target}})
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    store.save_config(config, file)
    assert asdict(configuration.load(file)) == asdict(config)
