"""Rewards by effect: real golds, real hangs in sympy, real processes gone."""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hydra.utils import get_method
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from grpo_lab.rewards import accuracy, format

REPOSITORY = Path(__file__).resolve().parents[2]
GSM8K = Path(os.environ.get("GRPO_LAB_GSM8K", REPOSITORY.parent / "shared/data/gsm8k"))
HANGING = r"\boxed{9^{9^{9^9}}}"  # sympy computes the power
HANGING_GOLD = r"\sqrt{2}+1"


@pytest.fixture(scope="module")
def golds() -> list[str]:
    lines = (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["answer"].split("####")[1].strip() for line in lines]
    assert len(found) == 1319
    return found


def chat(text: str | None) -> list[dict[str, str | None]]:
    return [{"role": "assistant", "content": text}]


def plus_one(gold: str) -> str:
    return str(int(gold.replace(",", "")) + 1)


def both_ways(form: str, golds: list[str]) -> None:
    """The gold answer in this form scores 1, another number in the same form 0."""
    assert accuracy([chat(form.replace("N", gold)) for gold in golds], golds) == [1.0] * len(golds)
    assert accuracy([form.replace("N", plus_one(gold)) for gold in golds], golds) == [0.0] * len(golds)


@pytest.mark.parametrize(
    "form",
    [
        "<answer>N</answer>",
        r"\boxed{N}",
        r"<think>16 - 3 = 13</think> <answer> $N </answer>",
        r"so \boxed{\$N}.",
        r"\boxed{N\text{ dollars}}",
        "<answer>N dollars</answer>",
        "<answer>N.00</answer>",
        "<answer>$x = N$</answer>",
        r"\boxed{7 + 2 = N}",
        r"\boxed{N\%}",
        r"<answer>The answer is \boxed{N}.</answer>",
        r"first \boxed{7}, no: <answer>$N$</answer>",
    ],
)
def test_every_gsm8k_gold_scores_one_and_another_number_zero(form: str, golds: list[str]) -> None:
    both_ways(form, golds)


@pytest.mark.parametrize("form", [r"\boxed{\frac{2\times N}{2}}", "<answer>$0+N$</answer>"])
def test_every_gsm8k_gold_left_to_calculate_is_no_answer_but_where_asked(form: str, golds: list[str]) -> None:
    golds = [gold.replace(",", "") for gold in golds]
    completions = [form.replace("N", gold) for gold in golds]
    assert accuracy(completions, golds) == [0.0] * len(golds)
    assert accuracy(completions, golds, simplified=False) == [1.0] * len(golds)
    others = [form.replace("N", plus_one(gold)) for gold in golds]
    assert accuracy(others, golds, simplified=False) == [0.0] * len(golds)


EQUAL = [
    ("1,234", r"\boxed{1234}"),
    ("1234", r"\boxed{1{,}234}"),
    ("1234", r"\boxed{1\,234}"),
    ("0.5", r"\boxed{\frac12}"),
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    ("1/2", r"\boxed{2/4}"),
    ("1 1/2", r"\boxed{1\frac12}"),
    (r"50\%", r"\boxed{50}"),
    (r"50\%", r"\boxed{0.5}"),
    (r"\frac12", r"\boxed{50\%}"),
    ("3 million", r"\boxed{3{,}000{,}000}"),
    ("-3", "\\boxed{\N{MINUS SIGN}3}"),
    ("18", "**<answer>**18**</answer>**"),
    (18, r"\boxed{18}"),
    ("2e3", r"\boxed{2000}"),
    ("Yes", r"\boxed{\text{yes}}"),
    ("A", r"\boxed{(A)}"),
    (r"\infty", r"\boxed{\infty}"),
    ("x^2+2x+1", r"\boxed{(x+1)^2}"),
    ("(1,2)", r"\boxed{(1,2)}"),
    (r"\sqrt{2}", r"\boxed{\sqrt2}"),
    (r"$\frac{1}{3}$", r"\boxed{\frac{2}{6}}"),
    (r"Hence \boxed{4}.", r"\boxed{4}"),
    ("5", r"\boxed{4}, no \boxed{5}, but \boxed{"),
    ("5", r"\boxed{4} and <answer>5</answer> and <answer>"),
]
DIFFERENT = [
    ("7", "the answer is 7"),
    ("18", r"\boxed{18 or 19}"),
    ("18", "<answer>17 18 19</answer>"),
    ("1 1/2", r"\boxed{1}"),
    (r"50\%", r"\boxed{0.5\%}"),
    (r"\frac12", r"\boxed{50}"),
    ("3", r"\boxed{3 million}"),
    ("dog", r"\boxed{god}"),
    ("Yes", r"\boxed{No}"),
    ("0.3333333", r"\boxed{1/3}"),
    ("5", "<answer>5</answer> or rather <answer>6</answer>"),
    ("1", r"\boxed{}"),
    ("1", r"\boxed{" + "0" * 2000 + "1}"),
]
UNREADABLE = [
    ("", r"\boxed{}"),
    (r"\frac{", r"\boxed{\frac{}"),
    (r"\frac{1}{0}", r"\boxed{\frac{1}{0}}"),
    (None, ""),
]


def test_what_equals_what() -> None:
    rows = [(g, c, 1.0) for g, c in EQUAL] + [(g, c, 0.0) for g, c in DIFFERENT] + [(g, c, None) for g, c in UNREADABLE]
    scores = accuracy([completion for _, completion, _ in rows], [gold for gold, _, _ in rows])
    assert [row for row, score in zip(rows, scores, strict=True) if score != row[2]] == []


def test_an_unreadable_gold_is_left_out_whatever_the_completion_and_counted() -> None:
    logged: Counter[str] = Counter()
    completions = ["", r"\boxed{\frac{", r"\boxed{1}", r"\boxed{3}"]
    scores = accuracy(completions, [r"\frac{"] * 3 + ["3"], log_metric=log_to(logged))
    assert scores == [None, None, None, 1.0]
    assert logged == {"rewards/accuracy/unparsable_gold": 3, "rewards/accuracy/timeouts": 0}


def log_to(counter: Counter[str]) -> Callable[[str, float], None]:
    return lambda name, value: counter.update({name: int(value)})


def test_anywhere_finds_an_answer_without_a_tag() -> None:
    completions = [r"I think the answer is $\frac12$.", "so it is 18", "so it is 19"]
    assert accuracy(completions, ["0.5", "18", "18"], extract="anywhere") == [1.0, 1.0, 0.0]
    assert accuracy(completions, ["0.5", "18", "18"]) == [0.0, 0.0, 0.0]


def test_an_unknown_way_to_extract_is_refused() -> None:
    with pytest.raises(ValueError, match="use last_tag or anywhere"):
        accuracy(["x"], ["1"], extract="first")


def test_messages_of_every_shape() -> None:
    parts = [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": r"\boxed{"}, {"type": "text", "text": "5}"}],
        }
    ]
    turns: list[dict[str, str | None]] = [
        *chat(r"\boxed{4}"),
        {"role": "tool", "content": "5"},
        *chat(r"\boxed{5}"),
    ]
    assert accuracy([parts, turns, chat(None), []], ["5"] * 4, prompts=["?"] * 4, other=[1] * 4) == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize("threaded", [False, True])
def test_a_hang_in_sympy_is_bounded_and_counted(threaded: bool) -> None:
    logged: Counter[str] = Counter()
    results: list[list[float | None]] = []

    def score() -> None:
        accuracy([r"\boxed{\sqrt{2}}"], [HANGING_GOLD])  # the processes are up
        start = time.monotonic()
        completions = [HANGING, HANGING, r"\boxed{10^{1000000000}}", r"\boxed{1+\sqrt2}"]
        results.append(accuracy(completions, [HANGING_GOLD] * 4, timeout_s=3.0, log_metric=log_to(logged)))
        results.append(accuracy([r"\boxed{1+\sqrt2}"], [HANGING_GOLD]))  # and it goes on
        assert time.monotonic() - start < 30

    if threaded:
        thread = threading.Thread(target=score)
        thread.start()
        thread.join(60)
    else:
        score()
    assert results == [[0.0, 0.0, 0.0, 1.0], [1.0]]
    assert logged["rewards/accuracy/timeouts"] == 3


def test_a_killed_checker_is_replaced() -> None:
    assert accuracy([r"\boxed{1+\sqrt2}"], [HANGING_GOLD]) == [1.0]
    for child in psutil.Process().children():
        if child.status() != psutil.STATUS_ZOMBIE and "grpo_lab.rewards.verifier" in " ".join(child.cmdline()):
            child.kill()
            child.wait(5)
    assert accuracy([r"\boxed{1+\sqrt{2}}"], [HANGING_GOLD]) == [1.0]


def run_python(code: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe, text=True)


def wait_for_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    return not psutil.wait_procs(processes, timeout=within_s)[1]


@pytest.mark.parametrize("end", ["idle, SIGKILL", "busy, SIGKILL", "idle, SIGTERM", "normal exit"])
def test_no_process_is_left(end: str) -> None:
    last = f"accuracy([{HANGING!r}], [{HANGING_GOLD!r}], timeout_s=3)" if end.startswith("busy") else "input()"
    parent = run_python(
        "from grpo_lab.rewards import accuracy\n"
        rf"accuracy([r'\boxed{{\sqrt8}}'], [r'2\sqrt2']); print('ready', flush=True); {last}"
    )
    assert wait_for_line(parent) == "ready"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    time.sleep(0.5)
    if end != "normal exit":
        parent.send_signal(signal.SIGTERM if "SIGTERM" in end else signal.SIGKILL)
    parent.communicate(None if end != "normal exit" else "\n", timeout=20)
    assert gone(children, within_s=10)


def test_import_is_cheap_and_numbers_start_no_process() -> None:
    child = run_python(
        "import sys; from grpo_lab.rewards import accuracy, format; accuracy([r'\\boxed{5}'], ['5'])\n"
        "print(sorted({'torch', 'sympy', 'math_verify', 'hydra'} & set(sys.modules)), flush=True)\n"
        "import psutil; print(psutil.Process().children())"
    )
    assert child.communicate(timeout=60)[0].split("\n")[:2] == ["[]", "[]"]


NASTY = {
    "empty": "",
    "megabytes": "word " * 1_000_000,
    "megabytes in a box": r"\boxed{" + "9" * 5_000_000 + "}",
    "megabytes of tags": "<answer>" * 400_000 + "</answer>" * 400_000,
    "megabytes of think": "<think>" * 400_000,
    "100k braces": r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}",
    "100k open braces": r"\boxed{" + "{" * 100_000,
    "100k open boxes": r"\boxed{" * 100_000,
    "deep fractions": r"\boxed{" + r"\frac{1}{" * 90 + "1" + "}" * 90 + "}",
    "deep brackets": r"\boxed{" + "(" * 450 + "1" + ")" * 450 + "}",
    "lone surrogate": "<answer>\ud800\udfff\ud800</answer>",
    "right to left": "<answer>\u202e5\u202c \u0665</answer>",
    "NUL": "<answer>\0 5 \0</answer>",
    "newlines": r"\boxed{1" + "\n" * 50 + "+ x}",
    "combining": "<answer>" + "5" + "\u0301" * 900 + "</answer>",
    "unbalanced tags": "</answer><answer>5<answer></think></answer></answer>",
    "open box": r"\boxed{",
    "power": "<answer>9**9**9</answer>",
    "division by zero": r"\boxed{\frac{1}{0}}",
    "division by plain zero": r"\boxed{1/0}",
    "exponent": r"\boxed{1e999999999}",
    "long exponent": "<answer>1e" + "9" * 300 + "</answer>",
    "many digits": "<answer>" + "9" * 990 + "</answer>",
    "code": "<answer>__import__('os').system('true')</answer>",
    "backslashes": r"\boxed{" + "\\" * 800 + "}",
    "dollars": "<answer>" + "$" * 900 + "</answer>",
    "blanks": "<answer>" + " " * 1_000_000 + "</answer>",
}


@pytest.mark.parametrize("extract", ["last_tag", "anywhere"])
@pytest.mark.parametrize("name", NASTY)
def test_no_text_breaks_a_reward(name: str, extract: str) -> None:
    start = time.monotonic()
    golds = ["5.25", HANGING_GOLD]
    scores = accuracy([chat(NASTY[name]), NASTY[name]], golds, extract=extract, timeout_s=2.0)
    assert scores == [0.0, 0.0]
    assert format([chat(NASTY[name])]) == [0.0]
    assert time.monotonic() - start < 12


@pytest.mark.parametrize("name", NASTY)
def test_no_gold_breaks_a_reward(name: str) -> None:
    (score,) = accuracy([r"\boxed{5.25}"], [NASTY[name]], timeout_s=2.0)
    assert score in (0.0, None)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=20))
def test_arbitrary_text(text: str, gold: str) -> None:
    for completion in (text, f"<answer>{text}</answer>", rf"\boxed{{{text}}}"):
        assert accuracy([completion], [gold], timeout_s=2.0)[0] in (0.0, 1.0, None)
        assert format([completion])[0] in (0.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_only_to_themselves(answer: int, gold: int) -> None:
    assert accuracy([f"<answer>{answer:,}</answer>"], [str(gold)]) == [float(answer == gold)]
    assert accuracy([rf"\boxed{{{gold}}}"], [f"{gold:,}"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>2+2</think><answer>4</answer>", 1.0),
        (" \n<think>\n2+2\n</think>\n\n<answer>\n4\n</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<answer>4</answer><think>2+2</think>", 0.0),
        ("<think>2+2</think> so <answer>4</answer>", 0.0),
        ("Well, <think>2+2</think><answer>4</answer>", 0.0),
        ("<think>2+2</think><answer>4</answer> ok", 0.0),
        ("<think>2+2</think><answer>4</answer><answer>5</answer>", 0.0),
        ("<think>a<think>b</think><answer>4</answer>", 0.0),
        ("<think>2+2<answer>4</answer></think>", 0.0),
        ("<think>2+2</think><answer>4", 0.0),
        ("<answer>4</answer>", 0.0),
        ("<THINK>2+2</THINK><answer>4</answer>", 0.0),
    ],
)
def test_format(text: str, score: float) -> None:
    assert format([chat(text), text], solution=["4", "4"]) == [score, score]


@pytest.mark.parametrize("name", ["accuracy", "format"])
def test_the_shipped_yaml_names_the_function_and_only_its_parameters(name: str) -> None:
    options = OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"conf/rewards/{name}.yaml"))
    assert isinstance(options, dict)
    function = get_method(options["_target_"])
    assert set(options) - {"_target_", "weight"} <= set(inspect.signature(function).parameters)
    arguments = {str(key): value for key, value in options.items() if key not in ("_target_", "weight")}
    well_formed = "<think>2+2</think><answer>4</answer>"
    assert function(completions=[chat(well_formed)], solution=["4"], **arguments) == [1.0]
