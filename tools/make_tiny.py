"""Makes the shipped checkpoint: a Qwen2 policy of about a million parameters that half knows its arithmetic.

    python -m tools.make_tiny --seed 0 --out grpo_lab/assets/tiny

It is trained on generated problems (never on a test problem, see `data.arithmetic`) in the format that the
rewards expect, by a teacher that calculates in its think step, but at times guesses without a thought and at times
is careless about the format. So the policy can solve what it often does not, and reinforcement has something to
find: think first, keep the format. The same seed, thread count and processor give the same files.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from grpo_lab import data

WORDS = Path(__file__).parents[1] / "grpo_lab" / "assets" / "words.txt"
"""Common words of GSM8K\'s questions with their counts."""
VOCABULARY = 1024
CONTEXT = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # text, so decoding must not skip them
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IGNORED = -100  # the label that the loss leaves out


@dataclass(frozen=True)
class Lessons:
    """How the policy is taught. `hasty` and `careless` are shares of the examples after `faultless` steps, 0..1."""

    steps: int = 1800
    faultless: int = 1400
    batch_size: int = 32
    learning_rate: float = 2.5e-3
    warmup: int = 60
    difficulties: tuple[int, ...] = (1, 2)
    hasty: float = 0.35  # an empty think step and a wrong guess
    careless: float = 0.12  # the format is broken


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits: any text encodes, tags and chat markers are one token each.

    It splits text as Qwen2 does, since AutoTokenizer opens any checkpoint of a Qwen2 model with Qwen2's own class.
    """
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen2.normalizer, qwen2.pre_tokenizer
    tokenizer.decoder = qwen2.decoder
    tokenizer.train_from_iterator(_word_stream(), _bpe_trainer())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """An untrained policy; 4 heads over 2 key-value heads split over two tensor-parallel ranks."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def completion(problem: data.Problem, rng: random.Random, hasty: float, careless: float) -> str:
    """The teacher's answer: each calculation, then the last value; `hasty` and `careless` are chances, 0..1."""
    calculations = data.steps(problem)
    value = calculations[-1][1]
    thought = ", ".join(f"{step}={result}" for step, result in calculations)
    if rng.random() < hasty:
        thought, value = "", _guess(value, rng)
    if rng.random() < careless:
        return rng.choice((f"{value}", f"<answer>{value}</answer>", f"<think>{thought}</think>{value}"))
    return f"<think>{thought}</think><answer>{value}</answer>"


def teach(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, lessons: Lessons, seed: int) -> None:
    """Supervised training with the loss on the completion; warm-up, then linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lessons.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, lessons))
    examples = example_stream(tokenizer, lessons, seed)
    model.train()
    for step in range(lessons.steps):
        batch = collate([next(examples) for _ in range(lessons.batch_size)], tokenizer.pad_token_id)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == lessons.steps - 1:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    model.eval()


def example_stream(
    tokenizer: PreTrainedTokenizerFast, lessons: Lessons, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Endless (prompt ids, completion ids), the difficulties in turn."""
    rng = random.Random(seed)
    faultless = lessons.faultless * lessons.batch_size
    streams = [
        data.problem_stream("train", seed=seed * len(lessons.difficulties) + place, difficulty=difficulty)
        for place, difficulty in enumerate(lessons.difficulties)
    ]
    for place in itertools.count():
        problem = next(streams[place % len(streams)])
        hasty, careless = (0.0, 0.0) if place < faultless else (lessons.hasty, lessons.careless)
        messages = [{"role": "user", "content": data.question(problem)}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        answer = completion(problem, rng, hasty, careless) + tokenizer.eos_token
        yield tokenizer.encode(prompt), tokenizer.encode(answer)


def collate(examples: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each [examples, longest]."""
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in examples:
        length = len(prompt) + len(answer)
        padding = longest - length
        rows["input_ids"].append(prompt + answer + [pad_id] * padding)
        rows["attention_mask"].append([1] * length + [0] * padding)
        rows["labels"].append([IGNORED] * len(prompt) + answer + [IGNORED] * padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


def make_checkpoint(out: Path, seed: int, lessons: Lessons | None = None) -> None:
    """Writes model, tokenizer and chat template to `out`."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    teach(model, tokenizer, lessons or Lessons(), seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _bpe_trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _word_stream() -> Iterator[str]:
    """Each word in its share of English, with the space before it; the chat's own words too."""
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        word, count = line.split()
        yield from [f" {word}"] * max(1, int(count) // 20)
    yield from ["system", "user", "assistant"] * 1000


def _guess(value: int, rng: random.Random) -> int:
    """A near miss, as one makes with a carry or a ten."""
    return value + rng.choice((-10, -2, -1, 1, 2, 10))


def _learning_rate_factor(step: int, lessons: Lessons) -> float:
    if step < lessons.warmup:
        return (step + 1) / lessons.warmup
    return max(0.02, (lessons.steps - step) / (lessons.steps - lessons.warmup))


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the tiny policy again.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="part of what the result depends on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make_checkpoint(args.out, args.seed)


if __name__ == "__main__":
    main()
