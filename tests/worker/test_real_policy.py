"""A real pretrained policy and its tokenizer: as it is asked, trained, evaluated; chat templates of other families."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from grpo_lab.conductor import preview
from grpo_lab.store.folder import Run
from tests.conftest import SMALL_CACHE, cli, first_completions
from tests.policy import smollm2

__all__ = ["smollm2"]

pytestmark = pytest.mark.slow

TEMPLATES = Path(str(importlib.util.find_spec("trl").submodule_search_locations[0])) / "chat_templates"  # type: ignore[union-attr, index]
QUESTION = [{"role": "system", "content": "Reply in \\boxed{}."}, {"role": "user", "content": "Was ist 3+4? <&>"}]
ANSWERED = [
    {"role": "user", "content": "3+4?"},
    {"role": "assistant", "content": "<think>\nthree and four\n</think>\n\nseven"},
    {"role": "user", "content": "and 5?"},
]
TEXTS = [
    "Grüße, 世界! 🤖👩‍🔬",
    "naïve\u0301 \u200d\ufeff",
    "\\boxed{\\frac{1}{2}}",
    "  a\t\tb\n\n\nc ",
    "x=12345678-90",
    "\x00\x7f",
]
"""Of several bytes a character, joined and combining ones, white space, control characters."""


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


def test_its_special_tokens_are_what_training_relies_on(tokenizer: Any, smollm2: Path) -> None:
    generation = json.loads((smollm2 / "generation_config.json").read_text())
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert tokenizer.encode("<|im_start|>user<|im_end|>")[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_text_survives_its_tokens(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert b"".join(_bytes(token) for token in tokenizer.convert_ids_to_tokens(ids)) == text.encode()


def _bytes(token: str) -> bytes:
    """Of a token of byte-level BPE (GPT-2's alphabet: printable bytes are themselves, the others from 256 on)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
    return bytes(alphabet[letter] for letter in token)


@pytest.mark.parametrize(
    "template", ["qwen2_5", "qwen3", "deepseek_r1_distill", "llama3", "llama3_2", "phi3", "gptoss", "its own", "none"]
)
@pytest.mark.parametrize("prompt", [QUESTION[1:], QUESTION, ANSWERED], ids=["user", "system", "answered"])
def test_a_dry_run_shows_what_transformers_writes(
    template: str, prompt: list[dict[str, str]], smollm2: Path, tmp_path: Path
) -> None:
    folder = with_template(smollm2, tmp_path / "policy", template)
    shown = preview.rendered(folder, prompt, {})
    if template == "none":
        assert shown == "\n\n".join(message["content"] for message in prompt) + "\n"
        return
    written = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=False
    )
    assert shown == written
    if prompt is ANSWERED and template in ("qwen3", "deepseek_r1_distill"):
        assert "three and four" not in shown  # such templates strip earlier thinking


def test_a_template_without_a_system_role_says_so(smollm2: Path, tmp_path: Path) -> None:
    folder = with_template(smollm2, tmp_path / "policy", "gemma")
    with pytest.raises(preview.NotShown, match="System role not supported"):
        preview.rendered(folder, QUESTION, {})
    assert "<start_of_turn>user\nWas ist" in preview.rendered(folder, QUESTION[1:], {})


def with_template(policy: Path, folder: Path, template: str) -> Path:
    """The policy under the chat template of another family, or none."""
    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).symlink_to(file)
    if template != "its own":
        (folder / "chat_template.jinja").unlink()
    if template not in ("its own", "none"):
        shutil.copy(TEMPLATES / f"{template}.jinja", folder / "chat_template.jinja")
    return folder


def without_padding(policy: Path, folder: Path) -> Path:
    """The policy as families are that name no padding token."""
    settings = json.loads((with_template(policy, folder, "its own") / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").unlink()
    kept = {key: value for key, value in settings.items() if not key.startswith("pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    return folder


RUNS = {
    "off": ["vllm=off"],
    "colocate-lora": ["vllm=colocate", "peft=lora", "vllm.check_sync_every=1", "vllm.max_model_len=256", SMALL_CACHE],
}
BRIEF = ["grpo.max_steps=2", "grpo.generation_batch_size=4", "grpo.num_generations=2", "grpo.max_completion_length=12"]
BRIEF += ["grpo.per_device_train_batch_size=4", "eval.problems=4", "tracker=none", "rewards=[accuracy,boxed]"]
Trained = Callable[[str], Run]


@pytest.fixture(scope="module")
def trained(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps of each, without vLLM those of a policy that names no padding; each is run once."""
    runs = tmp_path_factory.mktemp("real")

    @cache
    def run_of(name: str) -> Run:
        policy = without_padding(smollm2, runs / "unpadded") if name == "off" else smollm2
        asked = ["model=path", f"model.path={policy}", f"runs_dir={runs}", f"name={name}"]
        ended = cli(*BRIEF, *RUNS[name], *asked, timeout_s=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return Run(runs / name)

    return run_of


@pytest.mark.parametrize("name", ["off", pytest.param("colocate-lora", marks=pytest.mark.vllm)])
def test_two_steps_of_it(name: str, trained: Trained) -> None:
    run = trained(name)
    rows = run.rows()
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["completions/mean_length"] <= 12 for row in rows)
    assert len(first_completions(run)) == 4


@pytest.mark.vllm
def test_prompts_and_log_probabilities_are_alike_through_vllm(trained: Trained) -> None:
    """The same prompts were asked; float32 on both sides, the adapter merged."""
    off, colocate = trained("off"), trained("colocate-lora")
    asked = [row["num_tokens"] - 4 * row["completions/mean_length"] for row in (off.rows()[0], colocate.rows()[0])]
    assert asked[0] == pytest.approx(asked[1])
    for row in colocate.rows():
        assert row["sampling/sampling_logp_difference/mean"] < 1e-3


def test_an_evaluation_of_its_checkpoint(trained: Trained) -> None:
    run = trained("off")
    ended = cli(str(run.folder), "evaluate.problems=4", "evaluate.batch_size=4", module="grpo_lab.evaluate")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "pass@1" in ended.stdout
