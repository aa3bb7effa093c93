"""The shipped tiny policy: it loads like any checkpoint, answers at a middling level, and can be made again."""

import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from grpo_lab import data
from tools import make_tiny as tiny

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "grpo_lab" / "assets" / "tiny"
FORMAT = re.compile(r"<think>[^<]*</think><answer>([^<]*)</answer>")
BRIEF = tiny.Lessons(steps=2, batch_size=2, warmup=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(SHIPPED, dtype="auto")


def test_it_is_a_small_untied_qwen2_that_splits_in_two(model: Qwen2ForCausalLM) -> None:
    config = model.config
    assert type(model) is Qwen2ForCausalLM
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert config.vocab_size % 64 == 0
    assert config.hidden_size // config.num_attention_heads == 32
    assert config.num_attention_heads % 2 == config.num_key_value_heads % 2 == 0
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 5_000_000


@pytest.mark.parametrize("text", ["12+34=?", "  Zoë pays €3.50\n\tfor 漢字 🦆s, it's <b>cheap</b>", "", "\x00\ufeff"])
def test_any_text_encodes_and_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_it_encodes_the_same_however_it_is_opened(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<think>12-34</think> It's 5%of\n\n  the 3rd day,isn't it? e\u0301"
    assert tokenizer.encode(text) == tiny.make_tokenizer().encode(text)
    assert tokenizer.encode(text) == PreTrainedTokenizerFast.from_pretrained(SHIPPED).encode(text)


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("2024+1=") == ["2", "0", "2", "4", "+", "1", "="]


def test_tags_survive_decoding_and_markers_do_not(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|><think>1</think><answer>2</answer><|im_end|><|endoftext|>"
    ids = tokenizer.encode(text)
    assert len(ids) == 9
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == ["<think>1</think><answer>2</answer>"]


def test_it_ends_at_im_end_and_pads_with_another_token(
    tokenizer: PreTrainedTokenizerFast, model: Qwen2ForCausalLM
) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for settings in (model.config, model.generation_config):
        assert settings.eos_token_id == tokenizer.eos_token_id
        assert settings.pad_token_id == tokenizer.pad_token_id


def test_the_chat_template_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "1+1=?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"


def test_long_gsm8k_prompts_fit_the_context(tokenizer: PreTrainedTokenizerFast, model: Qwen2ForCausalLM) -> None:
    sentence = "Janet sells 16 eggs at the market every day for $2 each. "
    assert len(tokenizer.encode(sentence * 20)) < model.config.max_position_embeddings // 2


def test_sampled_answers_are_middling(tokenizer: PreTrainedTokenizerFast, model: Qwen2ForCausalLM) -> None:
    """Room to rise: neither hopeless nor done, in accuracy and in format (held-out problems, temperature 1)."""
    rows = data.arithmetic("test", seed=0, train_size=1, test_size=512, difficulty=2)
    texts = sample(model, tokenizer, rows["prompt"])
    matches = [FORMAT.fullmatch(text) for text in texts]
    right = [match and match[1] == gold for match, gold in zip(matches, rows["solution"], strict=True)]
    assert 0.30 <= sum(map(bool, right)) / len(rows) <= 0.60
    assert 0.75 <= sum(map(bool, matches)) / len(rows) <= 0.97


def test_the_teacher_without_fault_gives_the_gold_answer() -> None:
    for problem, _ in zip(data.problem_stream("train", seed=1, difficulty=5), range(200), strict=False):
        match = FORMAT.fullmatch(tiny.completion(problem, random.Random(0), hasty=0.0, careless=0.0))
        assert match is not None
        assert match[1] == str(data.steps(problem)[-1][1])


def test_the_loss_is_on_the_completion_only() -> None:
    batch = tiny.collate([([5, 6, 7], [8, 9]), ([5], [8])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 8, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 9], [-100, 8, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        tiny.make_checkpoint(tmp_path / name, seed=seed, lessons=BRIEF)
    one, two, other = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two", "other")
    )
    assert one == two
    assert {name for name in one if one[name] != other[name]} == {"model.safetensors"}


def test_the_shipped_tokenizer_and_shape_are_what_the_code_makes(tmp_path: Path) -> None:
    tiny.make_checkpoint(tmp_path, seed=0, lessons=BRIEF)
    for name in ("tokenizer.json", "config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (SHIPPED / name).read_text(encoding="utf-8")


def sample(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[dict[str, str]]]
) -> list[str]:
    torch.manual_seed(0)
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    ids = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=32)
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
