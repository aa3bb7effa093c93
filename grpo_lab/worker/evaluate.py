"""`python -m grpo_lab.worker.evaluate <evaluation folder>`: complete held-out prompts and judge what comes out.

Each batch of problems is saved by itself. The batches are the same whoever begins and ends with them, and each has its
own seed, so that one which goes on after a kill gives what an undisturbed one gives.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from pyarrow import Table, bool_, field, int64, schema, string
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import DiskFull
from grpo_lab.planner.evaluate import EvaluationPlan
from grpo_lab.planner.train import data_arguments
from grpo_lab.store import records
from grpo_lab.store.files import write_parquet
from grpo_lab.store.folder import Evaluation, Row, Run
from grpo_lab.store.records import Progress
from grpo_lab.worker.data import in_plain_text
from grpo_lab.worker.rewards import Reward, held_out_rule, right

Answer = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and a batch's seed -> completions of each prompt, one after the other; tokens, the end token included."""


SCHEMA = schema(
    [
        field("problem", int64()),
        field("sample", int64()),
        field("prompt", string()),
        field("solution", string()),
        field("completion", string()),
        field("correct", bool_()),
        field("tokens", int64()),
    ]
)


def answer_all(work: Evaluation) -> None:
    """Raises RequestError where the data cannot be evaluated."""
    config, plan = configuration.load(work.config), records.must_read(work.plan, EvaluationPlan)
    tokenizer = AutoTokenizer.from_pretrained(
        plan.adapter or plan.model_path,
        revision=_revision(config, plan.adapter or plan.model_path),
        trust_remote_code=config.model.trust_remote_code,
        padding_side="left",
    )
    problems = read_problems(config, plan, tokenizer)
    batches = [problems[start : start + plan.batch] for start in range(0, len(problems), plan.batch)]
    left = [number for number in range(len(batches)) if not work.part(number).is_file()]
    done = len(problems) - sum(len(batches[number]) for number in left)
    _show(work, "loading", done, len(problems))
    answer = _backend(config, plan, tokenizer, work, problems) if left else None
    rule = held_out_rule(config.rewards)
    for number in left:
        _show(work, "answering", done, len(problems))
        _save(work.part(number), *_answer_batch(plan, tokenizer, answer, rule, batches[number]))
        done += len(batches[number])
    _show(work, "answering", done, len(problems))


def _show(work: Evaluation, phase: str, done: int, total: int) -> None:
    records.write(work.progress, Progress(phase, done, total))


def _revision(config: Config, path: str) -> str | None:
    return config.model.revision if path == config.model.path else None


def read_problems(config: Config, plan: EvaluationPlan, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """`number`, `prompt`, `solution`, `tokens` and the whole `row` of the held-out problems to answer.

    Those that are too long are left out.

    Raises:
        RequestError: where there are none, or one does not fit the context.
    """
    target, limit = config.data["_target_"], config.data.get("max_prompt_tokens")
    try:
        rows = get_method(target)("test", **data_arguments(config))
    except (ValueError, TypeError, OSError) as error:
        raise RequestError(f"data: {error}") from error
    for column in {"prompt", "solution"} - set(rows.column_names):
        raise RequestError(f"data: {target} gives no column '{column}', which an evaluation needs")
    rows = in_plain_text(rows, tokenizer) if len(rows) else rows
    prompts = list(rows["prompt"])
    tokens = token_ids(tokenizer, prompts, plan.chat_template) if prompts else []
    problems = [
        {"number": number, "prompt": row["prompt"], "solution": row["solution"], "tokens": ids, "row": row}
        for number, (row, ids) in enumerate(zip(rows, tokens, strict=True))
        if not limit or len(ids) <= limit
    ][: plan.problems or None]
    if not problems:
        raise RequestError(f"data: {target} gives no held-out rows" + (f" of {limit} tokens or less" if limit else ""))
    room = max(len(problem["tokens"]) for problem in problems) + plan.sampling["max_tokens"]
    if plan.context and room > plan.context:
        raise RequestError(
            f"the longest prompt and grpo.max_completion_length={plan.sampling['max_tokens']} are {room} tokens, and"
            f" the limit is {plan.context}; data.max_prompt_tokens=N drops longer prompts"
        )
    return problems


def token_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[Any], chat_template: Row) -> list[list[int]]:
    """As TRL's trainer does it: strings as they are, messages through the chat template."""
    if isinstance(prompts[0], str):
        return tokenizer(prompts)["input_ids"]
    return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True, **chat_template)[
        "input_ids"
    ]


def _answer_batch(
    plan: EvaluationPlan, tokenizer: PreTrainedTokenizerBase, answer: Answer, rule: Reward, problems: Sequence[Row]
) -> tuple[list[Row], float]:
    """One record a problem and sample, and the seconds of generation."""
    started = time.perf_counter()
    tokens = answer([problem["tokens"] for problem in problems], seed_of(plan.seed, problems[0]["number"]))
    seconds = time.perf_counter() - started
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    asked = [problem for problem in problems for _ in range(plan.samples)]
    completions = [
        text if isinstance(problem["prompt"], str) else [{"role": "assistant", "content": text}]
        for problem, text in zip(asked, texts, strict=True)
    ]
    marks = right(rule, completions, [problem["row"] for problem in asked])
    records = [
        {
            "problem": problem["number"],
            "sample": place % plan.samples,
            "prompt": _text(problem["prompt"]),
            "solution": str(problem["solution"]),
            "completion": text,
            "correct": mark,
            "tokens": len(ids),
        }
        for place, (problem, text, mark, ids) in enumerate(zip(asked, texts, marks, tokens, strict=True))
    ]
    return records, seconds


def seed_of(seed: int, problem: int) -> int:
    """31 bits that differ for every seed and problem."""
    return int.from_bytes(hashlib.sha256(f"{seed} {problem}".encode()).digest()[:4], "big") >> 1


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(str(message["content"]) for message in prompt)


def _save(path: Path, records: list[Row], seconds: float) -> None:
    path.parent.mkdir(exist_ok=True)
    write_parquet(Table.from_pylist(records, schema=SCHEMA).replace_schema_metadata({"seconds": str(seconds)}), path)


def _backend(
    config: Config, plan: EvaluationPlan, tokenizer: PreTrainedTokenizerBase, work: Evaluation, problems: list[Row]
) -> Answer:
    """The model, loaded."""
    if plan.backend == "transformers":
        return _transformers(plan, tokenizer, _model(config, plan))
    if plan.adapter:
        _merge(config, plan, tokenizer, work.merged)
        plan = dataclasses.replace(plan, model_path=str(work.merged))
    room = max(len(problem["tokens"]) for problem in problems) + plan.sampling["max_tokens"]
    return _vllm(plan, room)


def _model(config: Config, plan: EvaluationPlan) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        plan.model_path,
        revision=_revision(config, plan.model_path),
        dtype=plan.dtype,
        attn_implementation=config.model.attn,
        trust_remote_code=config.model.trust_remote_code,
        device_map="auto" if plan.gpus and plan.backend == "transformers" else "cpu",
    )
    if plan.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, plan.adapter).merge_and_unload()
    return model.eval()


def _merge(config: Config, plan: EvaluationPlan, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A model with its adapter in it: vLLM's own adapters leave out what peft can train beside the LoRA matrices."""
    _model(config, plan).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _transformers(plan: EvaluationPlan, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Answer:
    sampling, ends = plan.sampling, _end_tokens(tokenizer, model)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    greedy = sampling["temperature"] == 0
    drawn = {key: sampling[key] for key in ("temperature", "top_p", "top_k", "min_p")}
    settings = GenerationConfig(
        max_new_tokens=sampling["max_tokens"],
        do_sample=not greedy,
        **({} if greedy else drawn),
        repetition_penalty=sampling["repetition_penalty"],
        num_return_sequences=plan.samples,
        pad_token_id=padding,
        eos_token_id=ends,
        **sampling["others"],
        disable_compile=True,
    )

    def answer(prompts: list[list[int]], seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        longest = max(map(len, prompts))
        ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.no_grad():
            whole = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )
        return [_ended(completion, ends) for completion in whole[:, longest:].tolist()]

    return answer


def _end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """The tokenizer's and every one that the model declares, as TRL's trainer has them."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in (tokenizer.eos_token_id, *declared) if token is not None})


def _ended(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end token, which belongs to it."""
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]


def _vllm(plan: EvaluationPlan, room: int) -> Answer:
    from vllm import LLM, SamplingParams

    engine = {"max_model_len": room, "seed": plan.seed, **plan.engine}
    model = LLM(model=plan.model_path, **engine)
    sampling = {key: value for key, value in plan.sampling.items() if key != "others"} | plan.sampling["others"]

    def answer(prompts: list[list[int]], seed: int) -> list[list[int]]:
        # n samples of one request get the seeds from its own on.
        settings = [
            SamplingParams(n=plan.samples, seed=seed_of(seed, place), **sampling) for place in range(len(prompts))
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = model.generate(asked, settings, use_tqdm=False)
        return [list(completion.token_ids) for output in outputs for completion in output.outputs]

    return answer


def main() -> None:
    """Exit code 2 for what was asked wrongly, with its words in the last lines of the log."""
    work = Evaluation(Path(sys.argv[1]))
    try:
        answer_all(work)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except DiskFull:
        Run(work.folder).ballast.unlink(missing_ok=True)  # room for the log
        raise
    finally:
        shutil.rmtree(work.merged, ignore_errors=True)


if __name__ == "__main__":
    main()
