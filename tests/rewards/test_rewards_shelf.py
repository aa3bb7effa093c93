"""The shelf of rewards: every shipped YAML composes, its gold scores what it says, and no text or row breaks it."""

from __future__ import annotations

import functools
import inspect
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_lab.conductor.preflight import check_targets
from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config
from grpo_lab.rewards import formats, lengths, matching, variety
from grpo_lab.rewards.countdown import countdown
from tests.conftest import ROOT
from tests.rewards.test_rewards import NASTY, chat, log_to
from tests.rewards.test_rewards_code import confined

SHIPPED = sorted(file.stem for file in (CONF / "rewards").glob("*.yaml"))


class Example(NamedTuple):
    good: str
    bad: str
    columns: dict[str, Any]
    values: tuple[float, float]
    """Of the good and of the bad completion; a completion has as many tokens as characters here."""
    bounds: tuple[float, float]


EXAMPLES = {
    "accuracy": Example(r"\boxed{\frac{1}{2}}", r"\boxed{2}", {"solution": "0.5"}, (1.0, 0.0), (0, 1)),
    "reasoning_accuracy": Example(
        "<think>5?</think><answer>4</answer>",
        "<think><answer>4</answer></think>5",
        {"solution": "4"},
        (1.0, 0.0),
        (0, 1),
    ),
    "format": Example("<think>a</think><answer>b</answer>", "b", {}, (1.0, 0.0), (0, 1)),
    "format_strict": Example(
        "<think>\na\n</think>\n<answer>\nb\n</answer>", "<think>a</think><answer>b</answer>", {}, (1.0, 0.0), (0, 1)
    ),
    "format_soft": Example("Well: <think>a</think> <answer>b</answer>.", "<answer>b</answer>", {}, (1.0, 0.0), (0, 1)),
    "tag_count": Example(
        "<think>a</think><answer>b</answer>", "<think>a<answer>b</answer></answer>", {}, (1.0, 0.5), (0, 1)
    ),
    "boxed": Example(r"so \boxed{x}", r"\boxed{ }", {}, (1.0, 0.0), (0, 1)),
    "unique_chars": Example("abcabc", "aaaaaa", {}, (3.0, 1.0), (0, math.inf)),
    "repetition": Example("abcdef", "aaaaaa", {}, (0.0, -0.75), (-1, 0)),
    "length": Example("a" * 200, "a" * 50, {}, (1.0, 0.25), (0, 1)),
    "length_cosine": Example(
        "<answer>4</answer>" + " " * 482, "<answer>5</answer>" + " " * 482, {"solution": "4"}, (0.5, -0.5), (-1, 1)
    ),
    "overlong": Example("a" * 400, "a" * 475, {}, (0.0, -0.75), (-1, 0)),
    "countdown": Example(
        "<answer>(25 - 5) * 3</answer>",
        "<answer>60</answer>",
        {"numbers": [3, 5, 25], "target": 60},
        (1.0, 0.1),
        (0, 1),
    ),
    "exact_match": Example(
        "<answer> New  York\n</answer>", "<answer>new york</answer>", {"solution": "New York"}, (1.0, 0.0), (0, 1)
    ),
    "number_match": Example("16 - 3 = 13, so $1,013.50.", "1013.5 or 7", {"solution": "1013.5"}, (1.0, 0.0), (0, 1)),
    "code": Example(
        "So:\n```python\ndef f(x):\n    return x + 1\n```\n",
        "```python\ndef f(x):\n    return 2\n```",
        {"tests": ["assert f(1) == 2", "assert f(2) == 3"]},
        (1.0, 0.5),
        (0, 1),
    ),
}
"""`model` has no gold; tests/rewards/test_rewards_model.py has it."""
MAX_LENGTH = "grpo.max_completion_length=500"


@functools.cache
def shipped(name: str, *overrides: str) -> tuple[Callable[..., list[float | None]], dict[str, Any]]:
    """The function of a choice and the parameters in its YAML."""
    configuration.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = configuration.from_hydra(compose("config", [f"rewards=[{name}]", MAX_LENGTH, *overrides]))
    check_targets(config if name != "model" else _with_url(config))
    parameters = dict(config.rewards[name])
    del parameters["weight"]
    return get_method(parameters.pop("_target_")), parameters


def reward(name: str, *overrides: str, **given: Any) -> list[float | None]:
    """As the worker calls it: parameters beat columns of the same name."""
    function, parameters = shipped(name, *overrides)
    return function(**{**given, **parameters})


def _with_url(config: Config) -> Config:
    config.rewards["model"]["url"] = "http://127.0.0.1:1"
    return config


def scores(name: str, texts: list[str], columns: dict[str, list[Any]], *overrides: str) -> list[float | None]:
    given = {"prompts": [chat("?")] * len(texts), "completion_ids": [[ord(c) for c in text] for text in texts]}
    return reward(name, *overrides, completions=[chat(text) for text in texts], **{**given, **columns})


def each(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=confined if name == "code" else ()) for name in names]


def test_every_shipped_reward_has_an_example() -> None:
    assert [name for name in SHIPPED if name != "model"] == sorted(EXAMPLES)


@pytest.mark.parametrize("name", each(SHIPPED))
def test_the_yaml_names_a_function_and_all_of_its_parameters(name: str) -> None:
    function, parameters = shipped(name)
    takes = inspect.signature(function).parameters
    fixed = {"completions", "prompts", "completion_ids", "log_metric", "columns", "kwargs", "self"}
    columns = {"solution", "numbers", "target", "tests", "test_cases"} if name != "length" else set()
    assert set(takes) - fixed - columns == set(parameters)
    assert function.__doc__


@pytest.mark.parametrize("name", each(EXAMPLES))
def test_the_gold_scores_what_it_says_and_another_text_less(name: str) -> None:
    example = EXAMPLES[name]
    columns = {key: [value] * 2 for key, value in example.columns.items()}
    assert scores(name, [example.good, example.bad], columns) == pytest.approx(list(example.values))


PIECES = [
    *("<think>", "</think>", "<answer>", "</answer>", "\n", " ", r"\boxed{", "{", "}", "```python\n", "\n```", "```"),
    *("1", "23", "-", "+", "/", "*", "(", ")", "$", ".", ",", "%", "=", r"\frac", "x", "\ud800", "\0", "\u2028", "é"),
]
ANY = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
AROUND = ["{}", "<answer>{}</answer>", "\\boxed{{{}}}", "<think></think>{}", "```python\n{}\n```"]
TEXTS = st.builds(str.format, st.sampled_from(AROUND), ANY)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["input", "output"]), inner)),
    max_leaves=4,
)


@pytest.mark.parametrize("name", each(EXAMPLES))
def test_no_text_and_no_row_breaks_it(name: str) -> None:
    slow = name in ("accuracy", "reasoning_accuracy", "length_cosine", "code")
    quick = [f"rewards.{name}.timeout_s=1.0"] if slow else []
    low, high = EXAMPLES[name].bounds

    @settings(max_examples=15 if slow else 50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(TEXTS, *[VALUES] * 5), min_size=1, max_size=3))
    def check(rows: list[tuple[Any, ...]]) -> None:
        names = ("solution", "numbers", "target", "tests", "test_cases")
        columns = {key: [row[place] for row in rows] for place, key in enumerate(names, 1)}
        found = scores(name, [row[0] for row in rows], columns, *quick)
        assert len(found) == len(rows)
        assert all(one is None or (isinstance(one, float) and low <= one <= high) for one in found)

    start = time.monotonic()
    check()
    assert time.monotonic() - start < 120


TEXT_ONLY = "boxed countdown exact_match format format_soft format_strict number_match tag_count unique_chars"


@pytest.mark.parametrize("name", TEXT_ONLY.split())
def test_long_texts_cost_little(name: str) -> None:
    example = EXAMPLES[name]
    columns = {key: [value] for key, value in example.columns.items()}
    start = time.monotonic()
    for text in (*NASTY.values(), "</think><answer>" * 300_000, "<think>" + "</think>" * 600_000):
        (found,) = reward(name, completions=[text], **columns)
        assert found is not None
        assert example.bounds[0] <= found <= example.bounds[1]
    assert time.monotonic() - start < 30


def test_importing_them_is_cheap() -> None:
    modules = "classifier, countdown, formats, lengths, matching, programs, variety"
    program = (
        f"import sys; from grpo_lab.rewards import {modules}\n"
        "print(sorted({'torch', 'trl', 'transformers', 'sympy', 'hydra', 'requests', 'numpy'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


STRICT = "<think>\na\n</think>\n<answer>\nb\n</answer>"


@pytest.mark.parametrize(
    ("text", "strict", "soft"),
    [
        (STRICT, 1.0, 1.0),
        (STRICT.replace("\na\n", "\na\n\nc\n"), 1.0, 1.0),
        (STRICT + "\n", 1.0, 1.0),
        (STRICT + "\n\n", 0.0, 1.0),
        (STRICT + " ", 0.0, 1.0),
        ("\n" + STRICT, 0.0, 1.0),
        (STRICT.replace("\na", "a"), 0.0, 1.0),
        (STRICT.replace("<answer>\n", "<answer>"), 0.0, 1.0),
        (STRICT.replace("b", "<think>"), 0.0, 1.0),
        (STRICT * 2, 0.0, 1.0),
        ("<think>\n</think>\n<answer>\n</answer>", 0.0, 1.0),
        ("<think></think><answer></answer>", 0.0, 1.0),
        ("<think>a</think> so <answer>b</answer>", 0.0, 0.0),
        ("<answer>b</answer><think>a</think>", 0.0, 0.0),
        ("<think>a</think><answer>b", 0.0, 0.0),
        ("a</think><answer>b</answer>", 0.0, 0.0),
        ("</answer><think>a</think><answer>b", 0.0, 0.0),
    ],
)
def test_strict_and_soft_format(text: str, strict: float, soft: float) -> None:
    assert formats.strict([text]) == [strict]
    assert formats.soft([text]) == [soft]


def test_tags_are_counted_with_their_line_breaks_where_asked() -> None:
    tags = ["<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"]  # open-r1's
    texts = [STRICT, STRICT.replace("\na\n", "a"), "", STRICT * 2]
    assert formats.tag_count(texts, tags=tags) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="at least one"):
        formats.tag_count([""], tags=[])


def test_boxed() -> None:
    texts = [r"\boxed{\frac{1}{2}}", r"\boxed {3}", r"\boxed{4", r"\boxed{}", r"\boxed{1} \boxed{}", "4"]
    assert formats.boxed(texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        ("it is 18", "18", 1.0),
        ("it is 18.", 18, 1.0),
        ("18, not 19", "18", 0.0),
        ("$1,234.50", "1234.5", 1.0),
        ("-$3", "-3", 1.0),
        ("x=\N{MINUS SIGN}3", "-3", 1.0),
        ("10-7", "7", 1.0),
        ("1/2", "0.5", 1.0),
        (".5", "1/2", 1.0),
        ("1/0", "1", 0.0),
        ("50%", "50", 1.0),
        (r"\boxed{7}", r"so \boxed{7}", 1.0),
        ("none", "7", 0.0),
        ("7", "seven", None),
        ("7", None, None),
        ("9" * 3000, "9", 0.0),
    ],
)
def test_number_match(text: str, gold: object, score: float | None) -> None:
    assert matching.number_match([text], [gold]) == [score]


def test_exact_match_of_the_whole_completion_and_of_either_case() -> None:
    assert matching.exact_match(["Yes"], ["Yes"]) == [0.0]
    assert matching.exact_match([" Yes\n"], ["Yes"], extract="all") == [1.0]
    assert matching.exact_match([r"\boxed{YES}"], ["yes"], ignore_case=True) == [1.0]
    assert matching.exact_match([r"\boxed{None}", r"\boxed{3}"], [None, 3]) == [None, 1.0]
    assert matching.exact_match([r"\boxed{nan}"], [math.nan]) == [None]
    with pytest.raises(ValueError, match="use last_tag or all"):
        matching.exact_match(["x"], ["x"], extract="anywhere")


def test_reasoning_accuracy_is_trls() -> None:
    from trl.rewards import reasoning_accuracy_reward

    texts = [
        r"<think> Reasoning </think> The final answer is \boxed{\frac{1}{3}}",
        r"<think> Reasoning </think> The final answer is \boxed{\frac{1}{2}}",
        r"<think> Partial answers \boxed{\frac{1}{3}} but no final answer",
        r"\boxed{\frac{1}{3}}</think>",
        r"</think>\boxed{1}</think>\boxed{\frac{2}{6}}",
    ]
    golds = [r"\frac{1}{3}"] * len(texts)
    ours = matching.reasoning_accuracy(texts, golds)
    assert ours == reasoning_accuracy_reward([chat(text) for text in texts], golds) == [1.0, 0.0, 0.0, 0.0, 1.0]
    logged: Counter[str] = Counter()
    assert matching.reasoning_accuracy(["</think>3"], [r"\frac{"], log_metric=log_to(logged)) == [None]
    assert logged == {"rewards/reasoning_accuracy/unparsable_gold": 1, "rewards/reasoning_accuracy/timeouts": 0}
    assert matching.reasoning_accuracy([r"A</r>\boxed{1}B</s>\boxed{2}"], ["2"], ["</r>", "</s>"]) == [1.0]


def test_cosine_is_trls() -> None:
    from trl.rewards import get_cosine_scaled_reward

    counts = [0, 1, 25, 50, 99, 100, 250]
    texts, golds = [r"\boxed{3}", r"\boxed{4}"] * len(counts), ["3"] * 2 * len(counts)
    ids = [[1] * count for count in counts for _ in range(2)]
    values = {"min_value_wrong": -0.9, "max_value_wrong": -0.2, "min_value_correct": 0.3, "max_value_correct": 0.8}
    trls = get_cosine_scaled_reward(max_len=100, **values)([chat(text) for text in texts], golds, completion_ids=ids)
    assert lengths.cosine(texts, golds, ids, max_len=100, **values) == pytest.approx(trls)
    assert lengths.cosine([""], [""], [[]], max_len=100) == [None]


def test_overlong_punishment_is_equation_13_of_dapo() -> None:
    ids = [[1] * count for count in (0, 80, 81, 90, 100, 101, 500)]
    assert lengths.overlong(ids, max_completion_len=100, soft_punish_cache=20) == pytest.approx(
        [0.0, 0.0, -0.05, -0.5, -1.0, -1.0, -1.0]
    )
    assert lengths.overlong(ids, max_completion_len=100) == lengths.overlong(ids, 100, soft_punish_cache=20)
    assert lengths.overlong(ids, max_completion_len=100, soft_punish_cache=0) == [0.0] * 5 + [-1.0] * 2


def test_repetition_is_the_share_of_repeated_n_grams() -> None:
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1], []]
    assert variety.repetition(ids, ngram_size=2, max_penalty=-2.0) == [0.0, -1.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        variety.repetition(ids, ngram_size=0)


def test_length() -> None:
    ids = [[1] * count for count in (0, 50, 100, 150, 200, 1000)]
    assert lengths.length(ids, target=100) == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert lengths.length(ids, target=100, width=200) == [0.5, 0.75, 1.0, 0.75, 0.5, 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        lengths.length(ids, target=0)


GAME = ([3, 5, 25, 3], 60)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("(25 - 5) * 3 * 3/3", 0.1),  # a 3 too many
        ("25*3 - 5*3", 1.0),
        ("25 * 3 - 3 * 5\n", 1.0),
        ("(25-5)*(3*3)/3", 0.1),
        ("(25-5)*3", 0.1),
        ("60", 0.1),
        ("25*3-5*3 = 60", 0.1),
        ("25*3-5*4", 0.1),
        ("-(5*3-25*3)", 1.0),
        ("3/(3-3)", 0.1),
        ("5**25", 0.1),
        ("25//3", 0.1),
        ("__import__('os')", 0.1),
        ("0x19*3-5*3", 0.1),
        ("2_5*3-5*3", 0.1),
        ("25.0*3-5*3", 0.1),
        ("25*3-5*3*1", 0.1),
        ("25 3", 0.1),
        ("25(3)", 0.1),
        ("(" * 240 + "60" + ")" * 240, 0.1),
        ("-" * 499 + "1", 0.1),
        ("9" * 10_000, 0.1),
        ("", 0.1),
    ],
)
def test_countdown(answer: str, score: float) -> None:
    numbers, target = GAME
    assert countdown([f"<answer>1</answer> <answer>{answer}</answer>"], [numbers], [target]) == [score]


def test_countdown_is_exact_and_says_where_it_has_no_game() -> None:
    third = "<answer>10 / 3 * 3 - 10 + 1 / 3</answer>"  # 1/3, which no float is
    assert countdown([third], [[10, 3, 3, 10, 1, 3]], ["1/3"], format_score=0.0) == [1.0]
    assert countdown(["25*3-5*3"], [GAME[0]], [60]) == [0.0]
    rows: list[Any] = [None, [], "3 5", [None], ["x"], [3], np.array([3]), (3,), np.array(3)]
    assert countdown(["<answer>3</answer>"] * 9, rows, [3] * 9) == [None] * 5 + [1.0] * 3 + [None]
    assert countdown(["<answer><answer>3</answer></answer>"], [[3]], np.array([3])) == [1.0]
    assert countdown(["<answer>3</answer>"], [[3]], [None]) == [None]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "set rewards.model.path= (a sequence classifier) or rewards.model.url="),
        ({"path": "x/y", "url": "http://x"}, "set rewards.model.path="),
        ({"path": "/nowhere"}, "no checkpoint there"),
        ({"url": "localhost:8000"}, "must start with http"),
    ],
)
def test_a_reward_model_that_cannot_be_asked_is_refused(changes: dict[str, str], message: str) -> None:
    configuration.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = configuration.from_hydra(compose("config", ["rewards=[model]"]))
    config.rewards["model"] |= changes
    with pytest.raises(RequestError) as refusal:
        check_targets(config)
    assert message in str(refusal.value)
