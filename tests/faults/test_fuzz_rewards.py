"""Random completions and columns to every reward on the shelf: one finite number or None for each, soon."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from grpo_lab.config.places import CONF
from grpo_lab.rewards import sandbox
from grpo_lab.rewards.classifier import model
from tests.faults.fuzz import PATIENCE_S, at_most, cases

JUDGED = ("accuracy", "length_cosine", "reasoning_accuracy")
"""These ask math-verify, in processes that are killed when it takes long: seconds, where others take microseconds."""
QUICK = sorted(file.stem for file in (CONF / "rewards").glob("*.yaml") if file.stem not in ("code", "model", *JUDGED))


@pytest.fixture(scope="module")
def shelf() -> dict[str, dict[str, Any]]:
    """name -> settings, as a run has them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        rewards = compose("config", [f"rewards=[{','.join((*QUICK, *JUDGED))},code]"]).rewards
    found = OmegaConf.to_container(rewards, resolve=True)
    assert isinstance(found, dict)
    return {str(name): settings for name, settings in found.items()}


PIECES = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        "{",
        "$",
        "\\(",
        "\\frac{1}{",
        "\\sqrt[",
        "^",
        "_",
        "%",
    ),
    *(
        "\n",
        "\t",
        "\0",
        "\r",
        " ",
        "```python\n",
        "\n```",
        "print(1)",
        "assert 0",
        "####",
        "####  ",
        "1,234",
        "-",
        "3/4",
        "1e9",
    ),
    *(
        "1e99",
        "9" * 101,
        "0/0",
        "1/0",
        "½",
        "٣",
        "²",
        "∞",
        "\ud800",
        "\U0001f600",
        "\u202e",
        "e\u0301",
        "(",
        ")",
        "[",
        "*",
        "/",
        "+",
    ),
    *(
        "(" * 120,
        "1+" * 90 + "1",
        "{" * 200,
        "\\text{",
        "million",
        "\\left(",
        "\\begin{matrix}",
        "x^{x^{x^9}}",
        "infinity",
        "nan",
    ),
]
words = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=40))
completion = st.one_of(
    words,
    words.map(lambda text: [{"role": "assistant", "content": text}]),
    st.sampled_from(
        [[], [{"role": "assistant", "content": None}], [{"role": "assistant", "content": [{"text": "5"}]}]]
    ),
)
gold = st.one_of(words, st.none(), st.integers(), st.floats(), st.booleans())
row = st.fixed_dictionaries(
    {
        "completions": completion,
        "completion_ids": st.lists(st.integers(0, 9), max_size=30),
        "solution": gold,
        "numbers": st.one_of(st.none(), words, st.lists(st.one_of(st.integers(-9, 99), gold), max_size=5)),
        "target": gold,
    }
)


def score(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[float | None]:
    """By the function as the trainer calls it."""
    parameters = {key: value for key, value in settings.items() if key not in ("_target_", "weight")}
    if "timeout_s" in parameters:
        parameters["timeout_s"] = 0.2
    columns = {key: [one[key] for one in rows] for key in rows[0]}
    with at_most(PATIENCE_S):
        return list(get_method(settings["_target_"])(**{**columns, **parameters}))


def check_scores(scores: list[float | None], count: int) -> None:
    assert len(scores) == count
    assert all(one is None or (isinstance(one, int | float) and math.isfinite(one)) for one in scores), scores


@cases(few=200, many=3000)
@given(st.lists(row, min_size=1, max_size=5))
def test_no_completion_breaks_a_reward(shelf: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    for name in QUICK:
        check_scores(score(shelf[name], rows), len(rows))


@cases(few=6, many=120)
@given(st.lists(row, min_size=1, max_size=2))
def test_no_completion_breaks_a_judged_reward(shelf: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    for name in JUDGED:
        check_scores(score(shelf[name], rows), len(rows))


nested = st.recursive(
    gold, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2), max_leaves=4
)


@pytest.mark.skipif(sandbox.missing() is not None, reason="programs cannot be confined here")
@cases(few=10, many=150)
@given(words, nested, nested)
def test_no_program_and_no_test_breaks_the_code_reward(
    shelf: dict[str, dict[str, Any]], program: str, tests: Any, test_cases: Any
) -> None:
    rows = [{"completions": f"```python\n{program}\n```", "tests": tests, "test_cases": test_cases}]
    check_scores(score(shelf["code"], rows), 1)


class _Says(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.answer  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Says) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield serving
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def classifier() -> Iterator[ThreadingHTTPServer]:
    with server() as serving:
        yield serving


def probs(value: Any) -> bytes:
    return json.dumps({"data": [{"probs": value}]}).encode()


answers = st.one_of(
    st.binary(max_size=30), nested.map(lambda value: probs(value)), st.lists(st.floats(), max_size=2).map(probs)
)


@cases(few=20, many=300)
@given(answers, completion)
def test_no_answer_of_a_reward_model_breaks_its_client(
    classifier: ThreadingHTTPServer, answer: bytes, completion: Any
) -> None:
    """A finite logit, or the error that ends the run as bad_reward."""
    classifier.answer = answer  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{classifier.server_port}"
    completion = completion if isinstance(completion, str) else [*completion]
    prompt: Any = "1+1" if isinstance(completion, str) else [{"role": "user", "content": "1+1"}]
    found: list[float | None] = []
    with at_most(PATIENCE_S), contextlib.suppress(ConnectionError):
        found = list(model([prompt], [completion], url=url, timeout_s=5.0))
    check_scores(found, len(found))
