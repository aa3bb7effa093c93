"""Weights pushed into real vLLM servers on a CPU: afterwards every engine computes with exactly the new ones."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from grpo_lab.config import upstream
from grpo_lab.machine.ports import lease
from grpo_lab.server.command import ServerPlan, server_argv, server_env
from grpo_lab.server.gloo import gloo_client
from grpo_lab.server.key import GATE, bearer
from grpo_lab.server.process import Server, vllm_server
from grpo_lab.worker.patches.vllm import client_of_a_run
from tests.conftest import assert_none_left, ownerless

pytestmark = pytest.mark.vllm
torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

PROMPT = [5, 17, 99, 42, 7]
ENGINE = {"enforce_eager": True, "dtype": "float32", "max_num_seqs": 8, "kv_cache_memory_bytes": 2**27}


def policy(seed: int, *, tied: bool = False) -> Any:
    """A small Qwen2 whose greedy answers depend on its seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def save(model: Any, folder: Path) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin's entry point for the server's processes, also where grpo-lab runs uninstalled."""
    if any(point.name == "grpo_lab" for point in importlib.metadata.entry_points(group="vllm.general_plugins")):
        return
    info = tmp_path / "site" / "grpo_lab-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grpo-lab\nVersion: 0\n")
    entry = "[vllm.general_plugins]\ngrpo_lab = grpo_lab.server.gloo:register\n"
    (info / "entry_points.txt").write_text(entry)
    source = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{info.parent}:{source}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))


@contextmanager
def running(folder: str, log: Path, *, tp: int, dp: int) -> Iterator[tuple[Server, int]]:
    """A server and the port to meet it on."""
    name = f"run-{uuid.uuid4().hex[:8]}"
    with lease(2) as (port, group_port):
        argv = server_argv(
            folder,
            served_name=name,
            host="127.0.0.1",
            port=port,
            tp=tp,
            dp=dp,
            backend="gloo",
            seed=1,
            max_model_len=64,
            gpu_memory_utilization=None,
            engine=ENGINE,
            version=upstream.version("vllm"),
        )
        env = server_env(on_cpu=True, tp=tp, dp=dp, cores=os.cpu_count() or 1, engine=ENGINE)
        plan = ServerPlan(tuple(argv), env, f"http://127.0.0.1:{port}", name, tp=tp, dp=dp, backend="gloo", seed=1)
        with vllm_server(plan, log=log, timeout_s=240, on_progress=print) as server:
            yield server, group_port


def greedy(url: str, engine: int, length: int = 8) -> tuple[list[int], list[float]]:
    """Tokens and their log-probabilities from one of the engines."""
    import requests

    body = {"prompt": PROMPT, "max_tokens": length, "temperature": 0, "logprobs": 0, "model": None}
    answer = requests.post(
        f"{url}/v1/completions",
        json={**body, "return_tokens_as_token_ids": True},
        headers={"X-data-parallel-rank": str(engine), **bearer()},
        timeout=60,
    )
    answer.raise_for_status()
    logprobs = answer.json()["choices"][0]["logprobs"]
    return [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]], logprobs["token_logprobs"]


def expected(model: Any, length: int = 8) -> tuple[list[int], list[float]]:
    """The same from transformers."""
    ids, logprobs = list(PROMPT), []
    with torch.no_grad():
        for _ in range(length):
            scores = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
    return ids[len(PROMPT) :], logprobs


def refuses_strangers(url: str) -> None:
    """Whoever does not send the key, which no command line shows; vLLM itself leaves the development endpoints open."""
    import requests

    key = bearer()["Authorization"].removeprefix("Bearer ")
    lines = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    assert any(GATE in line for line in lines)
    assert not any(key in line for line in lines)
    for path in ("/v1/models", "/server_info", "/metrics", "/version", "/get_world_size"):
        assert requests.get(url + path, timeout=10).status_code == 401, path
    for path in ("/v1/completions", "/reset_prefix_cache", "/init_weight_transfer_engine", "/update_weights", "/pause"):
        assert requests.post(url + path, json={}, timeout=10).status_code == 401, path
    assert requests.get(f"{url}/v1/models", headers={"Authorization": "Bearer x"}, timeout=10).status_code == 401
    assert requests.get(f"{url}/health", timeout=10).status_code == 200
    assert requests.get(f"{url}/server_info", headers=bearer(), timeout=90).status_code == 200


def agree(url: str, model: Any, engines: int) -> None:
    tokens, logprobs = expected(model)
    for engine in range(engines):
        found, found_logprobs = greedy(url, engine)
        assert found == tokens, f"engine {engine}"
        assert found_logprobs == pytest.approx(logprobs, abs=1e-3), f"engine {engine}"


@pytest.mark.parametrize(
    ("tp", "dp", "tied"), [(1, 1, False), (1, 1, True), (2, 1, False), (1, 2, False)], ids=["tp1", "tied", "tp2", "dp2"]
)
def test_every_engine_has_the_new_weights(tmp_path: Path, plugin: None, tp: int, dp: int, tied: bool) -> None:
    before, log = ownerless(), tmp_path / "server.log"
    first = policy(0, tied=tied)
    with running(save(first, tmp_path / "model"), log, tp=tp, dp=dp) as (server, group_port):
        refuses_strangers(server.url)
        agree(server.url, first, dp)
        client = client_of_a_run(gloo_client())(base_url=server.url, group_port=group_port, connection_timeout=10)
        client.init_communicator(device="cpu")
        for seed in (1, 2):
            later = policy(seed, tied=tied)
            started = time.monotonic()
            client.update_model_params(later)
            print(f"tp={tp} dp={dp}: {time.monotonic() - started:.3f} s")
            client.reset_prefix_cache()
            agree(server.url, later, dp)
        server.check()
        if (tp, dp, tied) == (1, 1, False):
            a_failed_update_does_not_hang(client)
        else:
            client.close_communicator()
    assert_none_left(before)


def a_failed_update_does_not_hang(client: Any) -> None:
    """A tensor that the model does not have, then a sender that breaks off."""
    tensors = [("model.no.such.weight", torch.zeros(3)), ("model.norm.weight", torch.ones(128))]
    started = time.monotonic()
    with pytest.raises(Exception, match="500"):
        client.update_named_params([(name, "float32", list(t.shape)) for name, t in tensors], iter(tensors))
    assert time.monotonic() - started < 20


def test_importing_the_plugin_costs_nothing() -> None:
    code = "import sys, grpo_lab.server.gloo; print({'torch', 'vllm', 'trl'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_vllm_still_packs_cpu_weights() -> None:
    """If this fails, `weight_transfer.keep_cpu_weights` is no longer needed: vLLM keeps the weight."""
    code = """
import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm as dispatch
layer = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
dispatch(layer, remove_weight=True)
from grpo_lab.server.gloo import keep_cpu_weights
keep_cpu_weights()
keep_cpu_weights()
from vllm.model_executor.layers import utils
kept = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
utils.dispatch_cpu_unquantized_gemm(kept, remove_weight=True)
print(layer.weight.numel(), kept.weight.numel(), kept.cpu_linear is torch.nn.functional.linear)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 4096 True"
