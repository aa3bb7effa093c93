"""What others must grant is asked for before the model is loaded: keys, tokens, folders."""

from __future__ import annotations

import base64
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_lab.conductor import credentials
from grpo_lab.config.errors import RequestError
from grpo_lab.config.jobs import PublishConfig
from grpo_lab.config.schema import Config, TrackerConfig
from tests.conftest import ROOT
from tests.fake_hub import TOKEN, hub

KEY, OTHER = "0123456789" * 4, "9876543210" * 4
ONLINE = Config(tracker=TrackerConfig(mode="online"))


class Wandb(http.server.BaseHTTPRequestHandler):
    """W&B as far as it answers whose a key is."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers["Authorization"] == f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"
        body = json.dumps({"data": {"viewer": {"username": "me"} if known else None}}).encode()
        self.send_response(200 if known or self.path.startswith("/lax") else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def wandb() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wandb) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/lax"])
def test_a_wandb_key_is_asked_for(path: str, wandb: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", wandb + path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert credentials.check(ONLINE, runs) == ()
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    with pytest.raises(RequestError, match=r"refuses the W&B key; set WANDB_API_KEY.* or tracker\.mode=offline"):
        credentials.check(ONLINE, runs)
    for asks_nobody in (Config(), Config(tracker=TrackerConfig(kind="none", mode="online"))):
        assert credentials.check(asks_nobody, runs) == ()


def test_a_wrong_key_ends_the_command_before_anything_starts(wandb: str, tmp_path: Path) -> None:
    env = {**os.environ, "WANDB_BASE_URL": wandb, "WANDB_API_KEY": OTHER, "PYTHONPATH": str(ROOT)}
    for words in (["seed=1"], ["--multirun", "seed=1,2"]):
        argv = [sys.executable, "-m", "grpo_lab.train", *words, "tracker.mode=online"]
        ended = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
        assert "refuses the W&B key" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_a_note_and_no_wait(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "PATIENCE_S", 0.4)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        (note,) = credentials.check(ONLINE, runs)
        assert time.monotonic() - began < 5
    assert note.startswith("the W&B key was not checked: http://127.0.0.1:")


def test_a_key_that_wandb_would_not_take(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "local-0123")
    with pytest.raises(RequestError, match="less than 40 characters"):
        credentials.check(ONLINE, runs)


def test_a_hub_token_is_asked_for(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Config(publish=PublishConfig(repo_id="me/sums"))
    with hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert credentials.check(asked, runs) == ()
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(RequestError, match="refuses the token; set HF_TOKEN"):
            credentials.check(asked, runs)
        credentials._asked_hub.cache_clear()
        server.role = "read"
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(RequestError, match="the token of me can only read"):
            credentials.check(asked, runs)


@pytest.mark.parametrize("place", ["file", "/proc"])
@pytest.mark.parametrize("words", [["train"], ["train", "--multirun", "seed=1,2"], ["evaluate", "model=tiny"]])
def test_a_folder_that_cannot_be_written(place: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    argv = [sys.executable, "-m", f"grpo_lab.{words[0]}", *words[1:], f"runs_dir={place}/runs", "vllm=off"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert "runs_dir= sets another folder" in ended.stderr
