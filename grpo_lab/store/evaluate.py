"""What came out: records -> pass@k with intervals, and the difference between two evaluations of the same problems."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lab.config.compose import load
from grpo_lab.config.errors import RequestError
from grpo_lab.planner.evaluate import EvaluationPlan
from grpo_lab.rewards.held_out import rule_text
from grpo_lab.store import stats
from grpo_lab.store.files import write_parquet
from grpo_lab.store.folder import Evaluation, Row
from grpo_lab.store.records import Env, EvaluationResult, read


@dataclass(frozen=True)
class Tally:
    """One problem and how it went."""

    prompt: str
    solution: str
    right: int | None
    """Of `samples` completions. None: the gold answer cannot be read."""
    samples: int


def gather(work: Evaluation) -> None:
    """Make one file of the parts, in the order of the problems. Raises DiskFull."""
    from pyarrow import concat_tables, parquet

    tables = [parquet.read_table(file) for file in sorted(work.parts.glob("part-*.parquet"))]
    seconds = math.fsum(float(table.schema.metadata[b"seconds"]) for table in tables)
    whole = concat_tables([table.replace_schema_metadata(None) for table in tables])
    write_parquet(whole.replace_schema_metadata({"seconds": str(seconds)}), work.records)
    shutil.rmtree(work.parts)


def tallies(work: Evaluation) -> list[Tally]:
    """One a problem, in their order."""
    from pyarrow import parquet

    by_problem: dict[int, list[Row]] = {}
    for record in parquet.read_table(work.records).to_pylist():
        by_problem.setdefault(record["problem"], []).append(record)
    return [_tally(records) for records in by_problem.values()]


def _tally(records: Sequence[Row]) -> Tally:
    marks = [record["correct"] for record in records]
    right = None if None in marks else sum(marks)
    return Tally(records[0]["prompt"], records[0]["solution"], right, len(records))


def build(work: Evaluation, plan: EvaluationPlan) -> EvaluationResult:
    """Sum up an evaluation whose every problem has been answered."""
    from pyarrow import parquet

    table, problems = parquet.read_table(work.records, columns=["tokens"]), tallies(work)
    seconds, tokens = float(table.schema.metadata[b"seconds"]), sum(table["tokens"].to_pylist())
    readable = [problem for problem in problems if problem.right is not None]
    return EvaluationResult(
        policy=plan.policy,
        model_path=plan.model_path,
        adapter=plan.adapter,
        accuracy_rule=rule_text(load(work.config).rewards),
        metrics={f"pass@{k}": stats.mean_share(_shares(readable, k)) if readable else None for k in plan.k},
        problems=len(problems),
        unreadable=len(problems) - len(readable),
        samples=plan.samples,
        sampling=plan.sampling,
        seed=plan.seed,
        seconds=seconds,
        tokens=tokens,
        backend=plan.backend,
        env=read(work.env, Env),
    )


def _shares(problems: Sequence[Tally], k: int) -> list[float]:
    return [stats.pass_at_k(problem.samples, problem.right or 0, k) for problem in problems]


def compare(first: Evaluation, second: Evaluation, ks: Sequence[int]) -> dict[str, Any]:
    """`pass@k` of the second less that of the first, paired over problems.

    Raises:
        RequestError: where they did not answer the same problems.
    """
    before, after = tallies(first), tallies(second)
    asked = [[(problem.prompt, problem.solution) for problem in side] for side in (before, after)]
    if asked[0] != asked[1]:
        raise RequestError(
            f"{first.folder} and {second.folder} answer different problems ({len(before)} and {len(after)}), so they"
            " cannot be compared; data= sets the same for both, without data.max_prompt_tokens"
        )
    both = [pair for pair in zip(before, after, strict=True) if None not in (pair[0].right, pair[1].right)]
    if not both:
        return {f"pass@{k}": None for k in ks}
    sides = [list(side) for side in zip(*both, strict=True)]
    return {f"pass@{k}": stats.paired_difference(_shares(sides[0], k), _shares(sides[1], k)) for k in ks}
