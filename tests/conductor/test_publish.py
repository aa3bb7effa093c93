"""`publish.repo_id=` against a small Hub on this machine: what goes there, what does not, and how it fails. About 12 s.

huggingface_hub uploads through plain LFS here; its other way, Xet, needs the Hub's own storage service.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import ROOT, SHORT
from tests.fake_hub import TOKEN, Hub, hub

SECRET = "sk-" + "x1Y2z3" * 6
REPO = "me/sums"
NOWHERE = "http://127.0.0.1:9"


def command(module: str, *words: str, endpoint: str, token: str | None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": "/nonexistent"}
    env.pop("HF_TOKEN", None)
    env.pop("HF_HUB_OFFLINE", None)
    if token is not None:
        env["HF_TOKEN"] = token
    argv = [sys.executable, "-m", f"grpo_lab.{module}", *words]
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as started:
        yield started


def asked(runs: Path) -> list[str]:
    secret = ["rewards.mine._target_=tests.rows.vllm_imported", f"vllm.env.MY_API_KEY={SECRET}"]
    short = [*SHORT, "grpo.max_steps=1", "eval.problems=16"]
    return [*short, f"publish.repo_id={REPO}", *secret, f"runs_dir={runs}", "name=one"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, subprocess.CompletedProcess[str]]:
    """A run that was to be published while the Hub could not be reached."""
    runs = tmp_path_factory.mktemp("runs")
    ended = command("train", *asked(runs), endpoint=NOWHERE, token=TOKEN)
    return Run(runs / "one"), ended


def test_an_unreachable_hub_is_told_and_leaves_the_run_finished(
    finished: tuple[Run, subprocess.CompletedProcess[str]],
) -> None:
    run, ended = finished
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "not published" in ended.stdout
    assert f"again: python -m grpo_lab.publish {run.folder} publish.repo_id={REPO}" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    assert store.read_json(run.result)["status"] == "finished"
    assert not run.published.exists()


def test_what_is_published(finished: tuple[Run, subprocess.CompletedProcess[str]], server: Hub) -> None:
    run, _ = finished
    words = [str(run.folder), f"publish.repo_id={REPO}"]
    refused = command("publish", *words, endpoint=server.url, token="hf_" + "wrong" * 7)
    assert refused.returncode == 1
    assert "401" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not server.files

    ended = command("train", *asked(run.folder.parent), endpoint=server.url, token=TOKEN)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "finished before" in ended.stdout
    assert server.private == {REPO: True}
    files = server.files[REPO]
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert set(files) == {
        *("README.md", "config.yaml", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    for name in ("model.safetensors", "tokenizer.json"):
        assert files[name] == (checkpoint[0] / name).read_bytes()
    for content in files.values():
        assert SECRET.encode() not in content
        assert TOKEN.encode() not in content
    card = files["README.md"].decode()
    after = store.read_json(run.result)["metrics"]["accuracy_after"]
    low, high = after["ci95"]
    assert f"| held-out pass@1 after training | {after['value']:.4g} | {low:.4g} to {high:.4g} | 16 |" in card
    for told in (
        "grpo_lab.data.arithmetic",
        "tests.rows.vllm_imported",
        "trl 1.16",
        "publish.repo_id=me/sums",
        "2402.03300",
    ):
        assert told in card

    assert command("publish", *words, endpoint=server.url, token=TOKEN).returncode == 0
    assert server.commits == 1  # nothing had changed
    assert store.read_json(run.published) == {"repo_id": REPO, "commit": f"{1:040x}"}


def test_without_a_token_nothing_starts(tmp_path: Path) -> None:
    ended = command("train", *SHORT, f"publish.repo_id={REPO}", f"runs_dir={tmp_path}", endpoint=NOWHERE, token=None)
    assert ended.returncode == 2
    assert "set HF_TOKEN or run `hf auth login`" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_not_published(tmp_path: Path, server: Hub) -> None:
    ended = command("publish", str(tmp_path), endpoint=server.url, token=TOKEN)
    assert ended.returncode == 2
    assert "no run there" in ended.stderr


def test_trls_own_options_are_named() -> None:
    ended = command("train", "grpo.push_to_hub=true", "dry_run=true", endpoint=NOWHERE, token=TOKEN)
    assert ended.returncode == 2
    assert "publish.repo_id=" in ended.stderr
