"""Signs that a run learns nothing, or something else than it should, or no longer computes numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_lab.store import folder as store
from grpo_lab.store import hacking
from grpo_lab.store.folder import Row, Run

STREAK = 10
"""Steps in a row with a lasting sign, from which on it is said while the run goes on."""
SHARE = 0.5
"""Of the steps, from which on a lasting sign is said at the end."""

NOT_FINITE = {key: f"not_finite/{key}" for key in ("loss", "grad_norm", "reward")}
"""What is counted -> its column in metrics.jsonl, in steps where it is not zero."""
EMPTY = "completions/empty"
"""Column: empty completions of the step."""


_REWARD = re.compile(r"rewards/[^/]+/mean")


@dataclass(frozen=True)
class Sign:
    """`amount`: how much of it is in a row, None where the row cannot say. `lasting`: normal now and then."""

    amount: Callable[[Row], float | None]
    text: str
    lasting: bool = False


def _count(key: str) -> Callable[[Row], float | None]:
    return lambda row: row.get(key, 0)


def _whole(key: str) -> Callable[[Row], float | None]:
    """A share that is 1 in the row."""
    return lambda row: None if row.get(key) is None else float(row[key] >= 1)


SIGNS = {
    "loss_not_finite": Sign(_count(NOT_FINITE["loss"]), "the loss was NaN or infinite"),
    "grad_norm_not_finite": Sign(_count(NOT_FINITE["grad_norm"]), "the gradient was NaN or infinite"),
    "reward_not_finite": Sign(_count(NOT_FINITE["reward"]), "rewards were NaN or infinite and count as None"),
    "empty_completions": Sign(_count(EMPTY), "there were completions without a character", lasting=True),
    "equal_rewards": Sign(
        _whole("frac_reward_zero_std"),
        "all completions of a prompt had the same reward, so there was nothing to learn",
        lasting=True,
    ),
    "truncated_completions": Sign(
        _whole("completions/clipped_ratio"),
        "every completion was cut off at grpo.max_completion_length",
        lasting=True,
    ),
}


def examine(run: Run) -> dict[str, Row]:
    """Sign -> its `message` and, where they can be counted, `steps` and others as of :func:`warnings`; a `sample`
    where a completion shows it."""
    rows = run.rows()
    return {**warnings(rows), **reward_warnings(rows), **solution_warnings(run), **hacking.warnings(run)}


def reward_warnings(rows: Sequence[Row]) -> dict[str, Row]:
    """Rewards that were 0 in every step, and those that judged nothing in any."""
    signs = {}
    for key in sorted({key for row in rows for key in row if _REWARD.fullmatch(key)}):
        name, values = key.split("/")[1], [row.get(key) for row in rows]
        spread = [row.get(f"rewards/{name}/std") for row in rows]
        steps = {"steps": len(rows), "of": len(rows)}
        if all(value is None for value in values):
            message = f"reward '{name}' was None for every completion: can it read the solutions of data?"
            signs[f"silent_reward/{name}"] = {**steps, "message": message}
        elif not any(values) and not any(spread):
            message = f"reward '{name}' was 0 in every one of {len(rows)} steps: nothing was learned from it"
            signs[f"zero_reward/{name}"] = {**steps, "message": message}
    return signs


def solution_warnings(run: Run) -> dict[str, Row]:
    """Held-out problems none of whose solutions can be read, so that there is no accuracy."""
    marks = store.read_json(run.evaluation("after")) or store.read_json(run.evaluation("before"))
    if not marks or any(mark is not None for mark in marks):
        return {}
    message = f"no solution of the {len(marks)} held-out problems can be read as an answer, so accuracy is not measured"
    return {"unreadable_solutions": {"count": len(marks), "message": message}}


def warnings(rows: Sequence[Row]) -> dict[str, Row]:
    """sign -> `steps` that show it, `of` the steps that can, `count` in all, and `message`."""
    shown = {}
    for name, sign in SIGNS.items():
        amounts = [amount for row in rows if (amount := sign.amount(row)) is not None]
        steps = sum(amount > 0 for amount in amounts)
        if steps and (not sign.lasting or steps >= SHARE * len(amounts)):
            message = f"{sign.text}: in {steps} of {len(amounts)} steps"
            shown[name] = {"steps": steps, "of": len(amounts), "count": int(sum(amounts)), "message": message}
    return shown


def shown_by(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(sign, words) of what should be said now, the last of `rows` being the step that has just ended."""
    return [(name, f"step {rows[-1]['step']}: {sign.text}") for name, sign in SIGNS.items() if _shows(sign, rows)]


def _shows(sign: Sign, rows: Sequence[Row]) -> bool:
    last = rows[-STREAK:] if sign.lasting else rows[-1:]
    return len(last) == (STREAK if sign.lasting else 1) and all((sign.amount(row) or 0) > 0 for row in last)
