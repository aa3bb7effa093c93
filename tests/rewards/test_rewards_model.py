"""The reward model: a small classifier in a real run, on the trainer's device and behind HTTP at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lab.config.places import CONF
from grpo_lab.rewards.classifier import model
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, cli
from tests.rewards.test_rewards import chat

TINY = CONF.parent / "grpo_lab" / "assets" / "tiny"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 classifier with one label and the tiny policy's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier") / "model"
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Classify(BaseHTTPRequestHandler):
    """Answers as vLLM's /classify does; the score is the number of characters of the completion."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/classify"
        assert asked["use_activation"] is False
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        text = asked["messages"][-1]["content"] if "messages" in asked else asked["input"]
        row = {"index": 0, "label": "LABEL_0", "probs": [float(len(text))], "num_classes": 1}
        self._answer(200, json.dumps({"object": "list", "data": [row]}))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: Any) -> None:
        """Nothing to the terminal."""


class Flaky(Classify):
    """Hangs up on the first two requests."""

    def do_POST(self) -> None:
        self.server.asked.append({})  # type: ignore[attr-defined]
        if len(self.server.asked) > 2:  # type: ignore[attr-defined]
            super().do_POST()


class Broken(Classify):
    def do_POST(self) -> None:
        answers = {"/a": (500, "no"), "/b": (200, "no json"), "/c": (200, '{"data": [{"probs": [0.1, 0.9]}]}')}
        self._answer(*answers[self.path.removesuffix("/classify")])


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # the default of 5 resets connections when 16 come at once


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL, and what was asked so far."""
    with Server(("127.0.0.1", 0), handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
        server.shutdown()


def test_a_run_with_both_kinds_of_reward_model(classifier: Path, runs: Path) -> None:
    with serving(Classify) as (url, asked):
        ended = cli(
            *SHORT,
            "grpo.max_steps=2",
            "eval.enabled=false",
            "rewards=[model]",
            f"rewards.model.path={classifier}",
            "rewards.served._target_=grpo_lab.rewards.classifier.model",
            f"rewards.served.url={url}",
            f"runs_dir={runs}",
            "name=one",
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = pyarrow.parquet.read_table(Run(runs / "one").completions).to_pylist()
    assert len(rows) == len(asked) == 64
    texts = [row["completion"][0]["content"] for row in rows]
    assert [row["served"] for row in rows] == [len(text) for text in texts]
    assert [row["model"] for row in rows] == pytest.approx(logits(classifier, rows), abs=1e-4)
    assert len({row["model"] for row in rows}) > 5
    assert all(isinstance(row["rewards/model/mean"], float) for row in Run(runs / "one").rows())


def logits(folder: Path, rows: list[dict[str, Any]]) -> list[float]:
    """Of each row alone, so without padding."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for row in rows:
            text = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
            found.append(network(**tokenizer(text, return_tensors="pt")).logits.item())
    return found


def test_the_classifier_must_be_one(classifier: Path) -> None:
    from grpo_lab.worker.rewards import BadReward, build

    target = "grpo_lab.rewards.classifier.model"
    (loaded,) = build({"mine": {"_target_": target, "path": str(classifier), "dtype": "bfloat16", "url": None}})
    assert str(loaded.dtype) == "torch.bfloat16"
    with pytest.raises(BadReward, match=r"'mine' needs a sequence classifier; .*tiny has no score.weight"):
        build({"mine": {"_target_": target, "path": str(TINY)}})
    with pytest.raises(BadReward, match="cannot load the classifier /nowhere"):
        build({"mine": {"_target_": target, "path": "/nowhere"}})


def test_a_column_does_not_replace_a_parameter() -> None:
    from grpo_lab.worker.rewards import build

    (reward,) = build({"length": {"_target_": "grpo_lab.rewards.lengths.length", "target": 4, "weight": 1.0}})
    assert reward(completions=["abcd"], completion_ids=[[1] * 4], target=[99]) == [1.0]  # the countdown's column


def test_the_wrong_number_of_values_is_a_bad_reward() -> None:
    from grpo_lab.worker.rewards import BadReward, build

    (reward,) = build({"mine": {"_target_": "tests.rewards.test_rewards_model.forgetful"}})
    with pytest.raises(BadReward, match="'mine' returned 1 values for 2 completions"):
        reward(completions=["a", "b"])


def forgetful(completions: list[str]) -> list[float]:
    return [1.0]


def test_prompts_without_messages_are_sent_as_text() -> None:
    with serving(Classify) as (url, asked):
        assert model(["2+2="], ["4"], url=f"{url}/") == [5.0]
    assert asked == [{"input": "2+2=4", "use_activation": False}]


def test_a_broken_connection_is_tried_again() -> None:
    with serving(Flaky) as (url, asked):
        assert model(["2+2="], ["4"], url=url) == [5.0]
        assert len(asked) == 4  # two without an answer, and one counted twice


@pytest.mark.parametrize(("path", "reason"), [("a", "500"), ("b", "no json"), ("c", "one label")])
def test_an_answer_that_is_none_is_a_bad_reward_with_the_url(path: str, reason: str) -> None:
    from grpo_lab.worker.rewards import BadReward, build

    with serving(Broken) as (url, _):
        (reward,) = build({"mine": {"_target_": "grpo_lab.rewards.classifier.model", "url": f"{url}/{path}"}})
        with pytest.raises(BadReward) as failure:
            reward(prompts=[chat("?")] * 3, completions=[chat("!")] * 3)
    assert f"{url}/{path}/classify" in str(failure.value)
    assert reason in str(failure.value)
    assert "'mine'" in str(failure.value)


def test_an_unreachable_server_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:9/classify: "):
        model([chat("?")], [chat("!")], url="http://127.0.0.1:9")


def test_a_silent_server_costs_its_time_limit_once() -> None:
    import socket
    import time

    from grpo_lab.worker.rewards import BadReward, build

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = {"_target_": "grpo_lab.rewards.classifier.model", "url": url, "timeout_s": 0.5}
        (reward,) = build({"mine": settings})
        start = time.monotonic()
        with pytest.raises(BadReward, match="timed out"):
            reward(prompts=[chat("?")] * 16, completions=[chat("!")] * 16)
        assert time.monotonic() - start < 20  # not once for each completion


def test_no_text_breaks_the_request() -> None:
    with serving(Classify) as (url, _):

        @settings(max_examples=30, deadline=None)
        @given(st.lists(st.text(st.characters(), max_size=30), max_size=4))
        def check(texts: list[str]) -> None:
            found = model([chat("?")] * len(texts), [chat(text) for text in texts], url=url)
            assert found == [float(len(text)) for text in texts]

        check()
        assert model([chat("?")], [chat("\ud800")], url=url) == [1.0]
