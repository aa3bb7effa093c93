"""The models: the YAMLs against transformers' own count, checkpoints read without loading, random weights that work."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.integrations.hub_kernels import is_kernel
from transformers.modeling_utils import AttentionInterface

from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import Shape
from grpo_lab.config.places import ASSETS, CONF
from grpo_lab.config.schema import ATTENTION, KERNEL, Config, ModelConfig, VllmConfig
from grpo_lab.planner.train import make_plan
from grpo_lab.store.folder import Run
from grpo_lab.worker.random_weights import make
from tests.conftest import SMALL_CACHE, cli
from tests.planner.test_plan import ON_CPU, PORTS, asked, planned, with_gpus
from tools import make_docs as shelves

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "path")
TINY = ASSETS / "tiny"

SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1152}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
FAMILIES = {"qwen2.5-7b": SMALL, "qwen3-0.6b": SMALL, "qwen3-30b-a3b": SMALL | EXPERTS, "llama-3.2-1b": SMALL}


@cache
def config_of(name: str) -> Config:
    """Composed once for all tests, which change copies."""
    return asked(f"model={name}")


def model_of(name: str, **changes: Any) -> ModelConfig:
    return replace(config_of(name).model, **changes)


def small(name: str) -> ModelConfig:
    """One of FAMILIES with every size cut down."""
    model = model_of(name, weights="random", parameters=None)
    return replace(model, architecture=model.architecture | FAMILIES[name])


def on_meta(model: ModelConfig) -> PreTrainedModel:
    """What transformers builds, less the weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**policy.architecture(model)))


@pytest.mark.parametrize("name", MODELS)
def test_the_yaml_says_what_transformers_would_build(name: str) -> None:
    """`parameters` in the YAMLs is the number that the hub publishes."""
    model = model_of(name)
    shape, built = policy.shape(model), on_meta(model)
    layer = built.model.layers[-1]
    assert shape is not None
    assert policy.parameters(model) == built.num_parameters()
    assert len(built.model.layers) == shape.layers
    assert built.model.embed_tokens.weight.shape == (shape.vocab, shape.hidden)
    assert (built.lm_head.weight is built.model.embed_tokens.weight) == shape.tied
    assert layer.self_attn.q_proj.out_features == shape.heads * shape.head_dim
    assert layer.self_attn.k_proj.out_features == shape.kv_heads * shape.head_dim
    if shape.experts:
        assert layer.mlp.experts.down_proj.shape == (shape.experts, shape.hidden, shape.mlp)
    else:
        assert layer.mlp.down_proj.in_features == shape.mlp
    assert built.config.max_position_embeddings == shape.context


def test_the_parameters_that_work_on_a_token() -> None:
    model = model_of("qwen3-30b-a3b")
    sizes = {name: tensor.numel() for name, tensor in on_meta(model).named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert policy.active_parameters(model) == sum(sizes.values()) - experts + experts * 8 // 128 == 3_353_032_704
    assert policy.active_parameters(model_of("qwen3-8b")) == 8_190_735_360
    shared = {**SMALL, "model_type": "deepseek_v3", "n_routed_experts": 64, "num_experts_per_tok": 6}
    assert policy.active_parameters(at("some/mixture", parameters=671_000_000_000, architecture=shared)) is None


@pytest.mark.parametrize(
    ("name", "context", "theta"),
    [
        ("qwen2.5-7b", 131072, 1e6),
        ("qwen2.5-7b-instruct", 32768, 1e6),
        ("qwen2.5-math-7b", 4096, 1e4),
        ("qwen2.5-0.5b-instruct", 32768, 1e6),
        ("llama-3.2-3b-instruct", 131072, 5e5),
    ],
)
def test_what_a_relative_does_not_inherit(name: str, context: int, theta: float) -> None:
    built = AutoConfig.for_model(**policy.architecture(model_of(name)))
    assert (built.max_position_embeddings, built.rope_parameters["rope_theta"]) == (context, theta)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_plans(name: str, cache_folder: Path) -> None:
    config = replace(config_of(name), vllm=VllmConfig(mode="colocate", dp=8))
    plan = make_plan(config, with_gpus(8), folder=Path("runs/x"), ports=PORTS)
    random = replace(config, model=replace(config.model, weights="random"))
    drawn = make_plan(random, with_gpus(8), folder=Path("runs/x"), ports=PORTS)
    assert config.model.name == name
    assert (plan.batch.processes, plan.prepare, plan.notes) == (8, None, ())
    assert drawn.prepare is not None
    assert Path(drawn.model_path).name.startswith(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of somebody's own."""
    return Path(shutil.copytree(TINY, tmp_path / "my-policy"))


def at(path: object, **changes: Any) -> ModelConfig:
    return ModelConfig(name="mine", path=str(path), **changes)


def test_a_folder_is_read_without_loading_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for path in (str(folder), "my-policy"):
        plan = planned(with_gpus(8), "model=path", f"model.path={path}", "vllm=colocate", "vllm.tp=2")
        assert (plan.model_path, plan.notes) == (str(folder), ())
        assert asked("model=path", f"model.path={path}").model.name == "my-policy"
    assert policy.shape(at(folder)) == Shape(4, 128, 384, 4, 2, 32, 1024, 1024, tied=False)
    assert policy.parameters(at(folder)) == 1_050_752
    with pytest.raises(RequestError, match="does not divide the 4 attention heads of my-policy"):
        planned(with_gpus(8), "model=path", f"model.path={folder}", "vllm=colocate", "vllm.tp=3")
    with pytest.raises(RequestError, match="my-policy has a context of 1024"):
        planned(with_gpus(1), "model=path", f"model.path={folder}", "grpo.max_completion_length=1024")


def test_parameters_are_counted_over_shards_and_once(folder: Path) -> None:
    """An output layer that is tied and stored all the same counts as nothing."""
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": {"x": torch.zeros(3, 5)}, "b.safetensors": {"lm_head.weight": torch.zeros(7)}}
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    weights = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert policy.parameters(at(folder)) == 22
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert policy.parameters(at(folder)) == 15
    (folder / "b.safetensors").unlink()
    assert policy.parameters(at(folder)) is None


def test_a_damaged_checkpoint_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(RequestError, match=r"model\.safetensors: damaged"):
        policy.parameters(at(folder))
    (folder / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(RequestError, match=r"config\.json: damaged"):
        policy.shape(at(folder))


def test_a_folder_of_another_shape_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"is no qwen2\.5-0\.5b: layers is 4, not 24; model=path takes any"):
        policy.shape(model_of("qwen2.5-0.5b", path=str(folder)))
    longer = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096}
    here = at(folder, architecture=policy.architecture(at(folder)))
    (folder / "config.json").write_text(json.dumps(longer))
    shape = policy.shape(here)
    assert shape is not None
    assert shape.context == 4096


def test_a_hub_id_is_known_once_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asks = ["model=path", "model.path=some/policy", "vllm=colocate", "vllm.tp=3"]
    plan = planned(with_gpus(3), *asks, "grpo.generation_batch_size=24")
    assert "the shape of some/policy is not known" in plan.notes[0]
    assert plan.model_path == "some/policy"
    stored = tmp_path / "models--some--policy"
    shutil.copytree(TINY, stored / "snapshots" / "c0ffee")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("c0ffee")
    with pytest.raises(RequestError, match="4 attention heads of policy"):
        planned(with_gpus(3), *asks)
    assert policy.parameters(at("some/policy")) == 1_050_752


def test_a_checkpoint_with_other_field_names_is_of_unknown_shape() -> None:
    assert policy.shape_of({"model_type": "gpt2", "n_head": 12, "n_embd": 768}) is None
    nested = json.loads((TINY / "config.json").read_text())
    assert policy.shape_of({"model_type": "some_vl", "text_config": nested}) == policy.shape_of(nested)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model=qwen2.5-7b", "model.attn=flash_attn_2"], "did you mean 'flash_attention_2'?"),
        (["model=qwen2.5-7b", "model.attn=paged|sdpa"], "model.attn=paged|sdpa"),
        (["model=qwen2.5-7b", "model.dtype=bf16"], "did you mean 'bfloat16'?"),
        (["model=qwen2.5-math-7b", "grpo.max_completion_length=4096"], "qwen2.5-math-7b has a context of 4096"),
        (["model=smollm2-135m", "vllm=colocate", "vllm.tp=2"], "9 attention heads"),
        (["model=path", "model.path=some/policy", "model.weights=random"], "model.path=some/policy is not known here"),
    ],
    ids=str,
)
def test_refused_with_the_reason(overrides: list[str], reason: str) -> None:
    with pytest.raises(RequestError) as refusal:
        planned(with_gpus(8), *overrides)
    assert reason in str(refusal.value)


def test_a_path_is_needed() -> None:
    ended = cli("model=path", "dry_run=true")
    assert (ended.returncode, ended.stderr) == (2, "error: model.path: a value is needed\n")


def test_experts_are_not_trained_through_vllm_on_a_cpu() -> None:
    with pytest.raises(RequestError, match="packs the experts of qwen3-30b-a3b"):
        planned(ON_CPU, "model=qwen3-30b-a3b", "vllm=colocate")
    assert planned(ON_CPU, "model=qwen3-30b-a3b").mode == "off"


def test_attention_names_are_transformers_own() -> None:
    known = {name for name in AttentionInterface._global_mapping if not name.startswith("paged|")}
    known.discard("tree_fa3")  # registered by TRL where another test has imported its asynchronous trainer
    assert set(ATTENTION) == known | {"eager"}
    for name in ("kernels-community/flash-attn2", "a/b@v1", "a/b:fast", "a/b@v1:fast", "sdpa", "a/b/c", "a/", "a/b:"):
        assert bool(KERNEL.fullmatch(name)) == is_kernel(name)
    for name in (*ATTENTION, "kernels-community/flash-attn2"):
        plan = planned(with_gpus(1), "model=qwen2.5-7b", f"model.attn={name}")
        assert plan.trl["model_init_kwargs"]["attn_implementation"] == name


def test_trainer_and_vllm_load_the_same_revision() -> None:
    asks = ["model=qwen2.5-7b", "model.revision=v2", "model.trust_remote_code=true", "model.dtype=bfloat16"]
    server = planned(with_gpus(2), *asks, "vllm=server")
    assert server.server is not None
    assert "--revision v2 --trust-remote-code" in " ".join(server.server.argv)
    assert server.trl["model_init_kwargs"] == {"dtype": "bfloat16", "revision": "v2"}
    assert server.trl["trust_remote_code"] is True
    colocated = planned(with_gpus(1), *asks, "vllm=colocate")
    assert colocated.engine == {"revision": "v2", "trust_remote_code": True}
    plain = planned(with_gpus(1), "model=qwen2.5-7b", "vllm=colocate")
    assert (plain.engine, plain.trl["trust_remote_code"]) == ({}, False)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_make_a_policy_that_trains(name: str, cache_folder: Path) -> None:
    model = small(name)
    folder = make(model)
    assert folder.is_relative_to(cache_folder)
    built, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert built.config.model_type == model.architecture["model_type"]
    assert built.num_parameters() == policy.parameters(at(folder))
    tokens = torch.randint(built.config.vocab_size, (2, 16))
    built(input_ids=tokens, labels=tokens).loss.backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in built.parameters())
    assert built.generation_config.eos_token_id == built.config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values())) == built.config.vocab_size
    text = "12+34=? <think>3+4</think><answer>46</answer>"
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(TINY).encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_weights_of_any_checkpoint(cache_folder: Path, folder: Path) -> None:
    """The shipped one, and one that is nothing but a config.json; each with a folder of its own."""
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 152_064}
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    mine, shipped = make(at(folder, weights="random")), make(model_of("tiny", weights="random"))
    assert mine != shipped
    assert policy.parameters(at(shipped)) == 1_050_752
    tokenizer = AutoTokenizer.from_pretrained(mine)
    assert sorted(tokenizer.get_vocab().values()) == list(range(152_064))


def test_runs_that_start_together_share_the_weights(cache_folder: Path) -> None:
    model = small("qwen2.5-7b")
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(make, [model, model]))
    assert made[0] == made[1]
    assert [path.name for path in made[0].parent.iterdir() if path.name.endswith(".draft")] == []
    assert AutoModelForCausalLM.from_pretrained(made[0]).num_parameters() == policy.parameters(at(made[0]))


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_gets_the_weights_of_another_family(cache_folder: Path, runs: Path) -> None:
    """Llama, whose rotary embedding and tied output layer differ from those of the tiny policy."""
    sizes = [f"model.architecture.{key}={value}" for key, value in SMALL.items()]
    asks = ["model=llama-3.2-1b", "model.weights=random", *sizes, "vllm=colocate", "vllm.max_model_len=256"]
    asks += [SMALL_CACHE, "vllm.check_sync_every=1"]
    asks += ["grpo.max_steps=3", "grpo.learning_rate=1e-3", "grpo.generation_batch_size=16"]
    asks += ["grpo.max_completion_length=16", "eval.enabled=false", "tracker=none", "rewards=[unique_chars]"]
    ended = cli(*asks, f"runs_dir={runs}", "name=llama")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = Run(runs / "llama").rows()
    assert len(rows) == 3
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in rows)
    assert any(row["grad_norm"] > 0.1 for row in rows)


@cache
def pages() -> dict[str, str]:
    return shelves.pages()


@pytest.mark.parametrize("page", ["models.md", "data.md", "rewards.md", "algorithms.md", "adapters.md", "results.md"])
def test_the_page_of_a_shelf_is_current(page: str) -> None:
    """python -m tools.make_docs writes it again."""
    assert (shelves.DOCS / page).read_text(encoding="utf-8") == pages()[page]


def test_the_pages_say_what_a_reader_needs() -> None:
    models = pages()["models.md"]
    assert "| 30,532,122,624 (3,353,032,704) | 48 |" in models
    assert set(MODELS) <= {line.split(" | ")[0].removeprefix("| ") for line in models.splitlines()}
    for group in ("data", "rewards"):
        named = {line.removeprefix("## ") for line in pages()[f"{group}.md"].splitlines() if line.startswith("## ")}
        assert named == {path.stem for path in (CONF / group).glob("*.yaml")}
    assert "`grpo_lab.data.gsm8k`: " in pages()["data.md"]
    assert "1 where the completion is &lt;think>" in pages()["rewards.md"]
