"""Models by their natural name, for every command; what is not there is refused as `bad_model`, with the nearest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_lab.conductor import models
from grpo_lab.config.errors import BadModel
from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import ModelConfig
from grpo_lab.store import folder as store
from tests.conftest import ROOT
from tests.fake_hub import TOKEN, hub


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copytree(ASSETS / "tiny", tmp_path / "my_model")
    shutil.copytree(ASSETS / "tiny", tmp_path / "kept" / "été [1]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    mine = "# @package _global_\ndefaults:\n  - override /model: ./my_model\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(mine)
    return tmp_path


def command(here: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", f"grpo_lab.{words[0]}", *words[1:]]
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(argv, cwd=here, env=whole, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train", "model=./my_model"], "my_model ({here}/my_model)"),
        (["train", "model=my_model"], "my_model ({here}/my_model)"),
        (["train", "model=kept/été [1]"], "été [1] ({here}/kept/été [1])"),
        (["train", "model=Qwen/Qwen2.5-7B-Instruct"], "qwen2.5-7b-instruct (Qwen/Qwen2.5-7B-Instruct)"),
        (["train", "model=some-body/new.model_1"], "new.model_1 (some-body/new.model_1)"),
        (["train", "-cd", "conf", "experiment=mine"], "my_model ({here}/my_model)"),
        (["bench", "model=./my_model"], "my_model ({here}/my_model)"),
        (["evaluate", "model=my_model"], "my_model, model ({here}/my_model)"),
        (["plan", "model=Qwen/Qwen2.5-7B-Instruct", "hardware=h100-8"], "qwen2.5-7b-instruct on 8 h100"),
        (["train", "--multirun", "model=tiny,./my_model,Qwen/Qwen2.5-0.5B"], "model=Qwen_Qwen2.5-0.5B"),
    ],
)
def test_a_folder_and_a_hub_id_are_models(words: list[str], shown: str, here: Path) -> None:
    ended = command(here, *words, *([] if words[0] == "plan" else ["dry_run=true"]))
    assert ended.returncode == 0, ended.stderr
    assert shown.format(here=here.resolve()) in ended.stdout


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("./my_modell", "no such folder); did you mean './my_model'?"),
        ("my_modl", "no folder here; did you mean './my_model'?"),
        ("empty", "this folder has no config.json"),
        ("Qwen2.5-7B-instruct", "did you mean 'qwen2.5-7b-instruct'?"),
        ("asset:tinny", "did you mean 'tiny'?"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is_nearest(model: str, reason: str, here: Path) -> None:
    words = ["model=path", f"model.path={model}"] if ":" in model else [f"model={model}"]
    ended = command(here, "train", *words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: bad_model: model")
    assert model in ended.stderr
    assert reason in ended.stderr
    assert not (here / "runs").exists()


def test_offline_it_says_how_to_fetch_it(here: Path) -> None:
    ended = command(here, "train", "model=Qwen/Qwen2.5-7B-Instruc", HF_HUB_OFFLINE="1", HF_HOME=str(here / "hf"))
    assert ended.returncode == 2
    assert "bad_model: model=Qwen/Qwen2.5-7B-Instruc: not whole on this machine, and HF_HUB_OFFLINE" in ended.stderr
    assert "did you mean 'Qwen/Qwen2.5-7B-Instruct'?" in ended.stderr
    assert "`hf download Qwen/Qwen2.5-7B-Instruc`" in ended.stderr
    assert "model.weights=random" in ended.stderr


def test_a_point_of_a_sweep_without_its_model_leaves_the_others(here: Path) -> None:
    small = ["grpo.max_steps=1", "eval.enabled=false", "tracker=none", "grpo.save_steps=0", "name=s"]
    ended = command(here, "train", "--multirun", "model=tiny,./nope", *small)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    failure = store.read_json(here / "runs/s/model=._nope/result.json")["failure"]
    assert failure["class"] == "bad_model"
    assert store.read_json(here / "runs/s/model=tiny/result.json")["status"] == "finished"


def without(folder: Path, pattern: str) -> Path:
    for file in folder.glob(pattern):
        file.unlink()
    return folder


def test_files_that_cannot_be_a_policy(here: Path) -> None:
    copies = [Path(shutil.copytree(here / "my_model", here / name)) for name in "abc"]
    tokenizer = json.loads((copies[2] / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 1024, "content": "<|new|>"})
    (copies[2] / "tokenizer.json").write_text(json.dumps(tokenizer))
    for folder, reason in (
        (without(copies[0], "*.safetensors"), "no weights"),
        (without(copies[1], "tokenizer*"), "no tokenizer"),
        (copies[2], "the tokenizer has 1025 tokens and the model 1024 embeddings"),
    ):
        with pytest.raises(BadModel, match=reason):
            models.check(ModelConfig(name="x", path=str(folder)))
    assert models.check(ModelConfig(name="x", path=str(here / "my_model"))) == ()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield


@pytest.mark.usefixtures("online")
def test_the_hub_is_asked_whether_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.check(ModelConfig(name="x", path="me/there")) == ()
    with pytest.raises(BadModel, match="the hub has none"):
        models.check(ModelConfig(name="x", path="me/not-there"))
    with pytest.raises(BadModel, match=r"without a config\.json"):
        models.check(ModelConfig(name="x", path="me/gguf"))
    with pytest.raises(BadModel, match="granted access; ask for access at http"):
        models.check(ModelConfig(name="x", path="me/gated"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BadModel, match="refuses the token"):
        models.check(ModelConfig(name="x", path="me/other"))
