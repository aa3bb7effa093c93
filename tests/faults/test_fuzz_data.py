"""Random rows and damaged files as data: prompts to train on, or a refusal that names the file or the value."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grpo_lab.conductor.preflight import check_data
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.data import jsonl, parquet
from tests.faults.fuzz import PATIENCE_S, at_most, cases


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For the files, with the cache of `datasets` in it; the working directory, since `path` may be one below it."""
    place, before = tmp_path_factory.mktemp("data"), datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = place / "cache"
    with contextlib.chdir(place):
        yield place
    datasets.config.HF_DATASETS_CACHE = before


text = st.text(max_size=12)
scalar = st.one_of(text, st.none(), st.booleans(), st.integers(), st.floats(), st.just(" "), st.just("5"))
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool"]), "content": st.one_of(text, scalar)}
)
prompt = st.one_of(
    st.just("What is 2+3?"), text, st.lists(message, min_size=1, max_size=3), scalar, st.lists(scalar, max_size=2)
)
plain_row = st.fixed_dictionaries({"prompt": st.text("abc", min_size=1, max_size=5), "solution": st.just("5")})
odd_row = st.fixed_dictionaries(
    {"prompt": prompt}, optional={"solution": scalar, "source": scalar, "completions": scalar}
)
nested = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2), max_leaves=5
)
line = st.one_of(plain_row, plain_row, plain_row, odd_row, nested).map(lambda row: json.dumps(row).encode())


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Whole most of the time; otherwise cut off, or with some bytes in it that do not belong there."""
    how = draw(st.sampled_from(["whole", "whole", "cut", "spoilt"]))
    at = draw(st.integers(0, len(content)))
    if how == "whole":
        return content
    return content[:at] if how == "cut" else content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    ending = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"]))
    start = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"["]))
    return draw(damaged(start + ending.join(draw(st.lists(line, max_size=6)))))


COLUMN = st.one_of(
    st.lists(text, min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.floats()), min_size=3, max_size=3),
    st.lists(st.binary(max_size=3), min_size=3, max_size=3),
    st.lists(st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=2), min_size=3, max_size=3),
    st.just([{"a": 1}, None, {"a": 2}]),
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    columns = draw(st.dictionaries(st.sampled_from(["prompt", "solution", "source", "é"]), COLUMN, max_size=3))
    table, file = pyarrow.table(columns), io.BytesIO()
    pyarrow.parquet.write_table(table.slice(0, draw(st.integers(0, 3))), file)
    return draw(damaged(file.getvalue()))


def check_read(file: Path, content: bytes, cache: Path, **settings: Any) -> None:
    """What comes through is prompts; what does not is refused as the command refuses it, before anything starts."""
    file.write_bytes(content)
    shutil.rmtree(cache / "cache", ignore_errors=True)
    kind = jsonl if file.suffix == ".jsonl" else parquet
    arguments = {
        "path": str(file),
        "columns": {"prompt": "prompt", "solution": "solution"},
        "held_out": 0.5,
        **settings,
    }
    config = Config(
        data={"_target_": f"grpo_lab.data.{kind.__name__}", **arguments},
        rewards={"accuracy": {"_target_": "grpo_lab.rewards.accuracy"}},
        grpo={"generation_batch_size": 2, "num_generations": 2},
    )
    try:
        with at_most(PATIENCE_S):
            check_data(config)
    except RequestError as error:
        said = str(error)
        assert said.startswith("data: "), said
        assert len(said.splitlines()) <= 3, said
        return
    for row in kind("train", **arguments):
        assert row["prompt"]
        assert all(isinstance(one["content"], str) and isinstance(one["role"], str) for one in row["prompt"])
        assert row["solution"].strip()


@cases(few=50, many=1000)
@given(json_lines())
@example(b'null\n{"prompt": "a", "solution": "1"}\n')  # pyarrow 26.0 would end the process
def test_any_jsonl_file_is_read_or_refused(folder: Path, content: bytes) -> None:
    check_read(folder / "rows.jsonl", content, folder)


@cases(few=25, many=500)
@given(tables())
def test_any_parquet_file_is_read_or_refused(folder: Path, content: bytes) -> None:
    check_read(folder / "rows.parquet", content, folder)


odd = st.one_of(
    scalar, st.lists(scalar, max_size=2), st.dictionaries(st.sampled_from(["prompt", "solution", "x"]), scalar)
)
settings = st.dictionaries(
    st.sampled_from(["columns", "train", "test", "held_out", "seed", "system_prompt", "path"]),
    st.one_of(
        odd, st.sampled_from(["train[:10%]", "train[", "train[5:2]", "train[:200%]", "train+train", "test", "r1", "."])
    ),
    min_size=1,
    max_size=2,
)
ROWS = b"".join(json.dumps({"prompt": f"{n}+1", "solution": str(n + 1)}).encode() + b"\n" for n in range(6))


@cases(few=25, many=500)
@given(settings)
def test_any_parameter_of_the_data_is_used_or_refused(folder: Path, settings: dict[str, Any]) -> None:
    check_read(folder / "rows.jsonl", ROWS, folder, **settings)
