"""What is an answer and what equals it: agreed cases, and rewrites of golds that must agree or must not."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lab.rewards import accuracy
from grpo_lab.rewards.answers import read_answer, read_gold
from grpo_lab.rewards.comparison import Question, Verdict, settle
from grpo_lab.rewards.matching import number_match, reasoning_accuracy
from tests.rewards.test_rewards import HANGING, HANGING_GOLD, log_to

CASES = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()]


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def test_the_agreed_cases() -> None:
    assert len(CASES) == 45
    scores = accuracy([case["completion"] for case in CASES], [case["gold"] for case in CASES], timeout_s=60.0)
    assert [case for case, score in zip(CASES, scores, strict=True) if score != case["expected"]] == []


UNEVALUATED = [
    *("82-49", "30+3", "3*11", r"3 \times 11", r"3 \cdot 11", "1320/40", r"\frac{66}{2}", r"\dfrac{33}{1}", "66:2"),
    *(r"\sqrt{1089}", "√1089", "33^1", r"2^5+1", r"\binom{33}{1}", r"\sum_{i=1}^{2} 11 i", "33!/32!", r"66 \div 2"),
    *("--33", "x = 82-49", "33 = 82-49", "32 1/1", r"\lfloor 33.5 \rfloor", "|33|", "33 or 34", "33, 34", "33; 34"),
    *(r"33\text{ or }34", "x=34, x=33", "33 to 34", "33x", "33 + x", "3.3*10", r"\max(33, 2)", r"33\pm 1", "33-0"),
    *("3 x 11", "33 pi", "33 squared", "33 hundredths", "33 less than x", "33 if n is even", "33 > 3"),
]
EVALUATED = [
    *("33", "33.0", "+33", "x=33", r"\$33", "€33", "33 £", "33 dollars", r"33\text{ cm}^2", "33 km/h", "33 cm²"),
    *(r"33\,\text{m/s}", r"33^\circ", "33°", r"3.3 \times 10^1", "3.3e1", "3.3 × 10¹", "330e-1", "(33)", "{33}"),
    *("82-49=33", r"f(2,3) = 33", r"\text{Total} = 33", r"\textbf{33}", r"\left(33\right)", "33 square meters"),
    *("033", "33\n", r"\mathrm{33}", r"$33$", "33 people per day", r"3300\%", "33.", r"33 \frac{\text{m}}{\text{s}}"),
]


@pytest.mark.parametrize("answer", UNEVALUATED)
def test_what_is_left_to_calculate_is_no_whole_number(answer: str) -> None:
    assert accuracy([boxed(answer), f"<answer>{answer}</answer>"], ["33"] * 2) == [0.0, 0.0]


@pytest.mark.parametrize("answer", EVALUATED)
def test_ways_to_write_a_whole_number(answer: str) -> None:
    golds: list[object] = ["33", 33, "x = 33", "5*6+3 = <<5*6+3=33>>33\n#### 33", r"So \boxed{33}.", r"\$33.00"]
    assert accuracy([boxed(answer)] * len(golds), golds) == [1.0] * len(golds)
    assert accuracy([boxed(answer)] * 3, ["34", "-33", "3.3"]) == [0.0] * 3


EQUAL = [
    ("1/2", ["0.5", r"\frac12", r"\frac{2}{4}", "50%", "½", ".5", "1:2", r"x=\frac{1}{2}", r"\tfrac 1 2"]),
    ("1.5", ["3/2", r"1\frac{1}{2}", "1 1/2", "1½", "1.50", "3:2", r"150\%", "15e-1"]),
    (r"-\frac{1}{3}", [r"\frac{-1}{3}", "-1/3", r"-0.\overline{3}", "−1/3"]),
    ("1234567", ["1,234,567", "1{,}234{,}567", r"1\,234\,567", "1 234 567", r"1,\! 234,\!567", "1.234567e6"]),
    ("2/2", ["2/2", "1", r"\frac33"]),
    ("10^{-3}", ["0.001", "1e-3", "10^{-3}", "1/1000"]),
    ("6.02e23", [r"6.02 \times 10^{23}", r"6.02\cdot 10^{23}", "6.02*10^23", "6.02 × 10²³", "602e21"]),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", ["\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"]),
    (r"\begin{pmatrix} -1/2 \\ \sqrt{2} \end{pmatrix}", ["\\begin{pmatrix}\n -\\frac12 \\\\\n\\sqrt2\n\\end{pmatrix}"]),
    ("{1,2,3}", ["3, 2, 1", r"\{1,3,2\}", "1, 2 and 3", "{1,2,3}"]),
    ("(-1, 3]", [r"(-1,3]", r"\left(-1, 3\right]", "(−1, 3]"]),
    (r"(-\infty, 2) \cup (3, \infty)", ["(-∞, 2) ∪ (3, ∞)", r"(-\infty,2)\cup(3,\infty)"]),
    ("x^2+2x+1", ["(x+1)^2", "x²+2x+1", "(x+1)²"]),
    (r"\frac{\pi}{4}", ["π/4", r"\pi/4", "0.785398163397448"]),
    ("12:30", ["12:30", "12:30 pm", "12:30 PM"]),
    ("2:05 p.m.", ["14:05", "2:05", "2:05 PM"]),
    (r"x=2 \text{ or } x=3", ["2, 3", "x=3, x=2", r"2\text{ and }3"]),
    ("3 million", ["3,000,000", "3e6", "3 million dollars"]),
    ("033", ["33"]),
    (r"\text{east}", ["East", r"\text{East}"]),
    (r"\boxed{\text{(B)}}", ["B", "(B)"]),
]
DIFFERENT = [
    ("1/2", ["0.50001", "1/4+1/4", r"\frac{1}{1+1}", r"\sin 30^\circ", "50", "1:20", r"\sqrt{1/4}", r"\frac{1.5}{3}"]),
    ("0.3333333", ["1/3", r"0.\overline{3}"]),
    ("4.5", [r"\sqrt{20.25}", "9 \\div 2", "2*2.25", r"\sqrt{20.25}+0"]),
    ("4.12", [r"\sqrt{17}", "4.13"]),
    ("4.123105625617661", [r"\sqrt{8+9}", r"\sqrt{17.00000001}", "4.12310562561766", r"\sqrt{18}"]),
    (r"\sqrt{17}", ["4.12", "4.123104", "17", "4.2"]),
    (r"1.6 \times 10^{-19}", ["1.6", r"1.6 \times 10^{19}", "0", r"1.6 \times 10^{-18}", r"1.61\times 10^{-19}"]),
    (r"1.6 \times 10^{-19} x", [r"1.7 \times 10^{-19} x"]),
    (
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        [r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 3-2 \\ 2 \end{pmatrix}"],
    ),
    ("(1, 2)", ["(2, 1)", "[1, 2]", "(1, 3-1)", "(1, 4/2)", "1"]),
    ("2, 3", ["2", "3", "2, 4", "2, 3, 4", "1+1, 3", "5"]),
    ("0,111", ["111", "1,111", "0.112"]),
    ("12:30", ["12:31", "0.4", "2/5", "1230", "24:60"]),
    ("2:05 p.m.", ["2:05 am", "02:05 a.m.", "205"]),
    ("5", ["5:00", "5:1", "5/1", "V", "five less", "5 dozen", "5 thirds", "5 quarters", "5 or so", r"5\pi", "0,005"]),
    ("7", [r"\text{7 or 8}", r"7\text{ and }8", "7, 7.5", "<7", "7+", "7-", "7/", "~7.5", "7^", "7^2", "7_2"]),
    (r"x^2+y^2=25", ["25", "x^2+y^2=24"]),
]


@pytest.mark.parametrize(("gold", "answers"), EQUAL)
def test_another_form_of_the_gold(gold: str, answers: list[str]) -> None:
    scores = accuracy([boxed(answer) for answer in answers], [gold] * len(answers))
    assert dict(zip(answers, scores, strict=True)) == dict.fromkeys(answers, 1.0)


@pytest.mark.parametrize(("gold", "answers"), DIFFERENT)
def test_another_answer_than_the_gold(gold: str, answers: list[str]) -> None:
    scores = accuracy([boxed(answer) for answer in answers], [gold] * len(answers))
    assert dict(zip(answers, scores, strict=True)) == dict.fromkeys(answers, 0.0)


def test_golds_are_read_out_of_rows_and_solutions() -> None:
    golds = ["9*2=18\n#### 18", r"\boxed{1} and so \boxed{18}", "<answer><answer>18</answer></answer>", math.nan, None]
    assert accuracy([boxed("18")] * 5, golds) == [1.0, 0.0, 1.0, None, None]
    assert read_gold(r"\boxed{\boxed{18}}") == read_gold("18")
    assert read_gold(r"$\boxed{2}$, again $\boxed{2}$") == read_gold("2")
    assert number_match(["18", "18"], ["9*2=18\n#### 18", math.nan]) == [1.0, None]


INTEGERS = st.integers(-(10**9), 10**9)


def rewrites(value: int) -> list[str]:
    sign = "-" if value < 0 else ""
    size = abs(value)
    grouped = f"{value:,}"
    return [
        *(str(value), grouped, grouped.replace(",", "{,}"), grouped.replace(",", r",\!"), grouped.replace(",", r"\,")),
        *(f"{value}.0", f"{value}.", f"{sign}\\${size}", f"{sign}€{size}", f"{value} £", f"{value}°", f"x = {value}"),
        *(rf"{value}\text{{ cm}}", rf"{value} \text{{ dollars}}", f"{value} m²", f"{value}^\\circ", f"\n{value}\n"),
        *(f"{value}e0", rf"{value} \times 10^{{0}}", f"{value * 100}\\%", str(value).replace("-", "−")),
    ]


@settings(max_examples=100, deadline=None)
@given(INTEGERS, INTEGERS)
def test_rewrites_of_a_number_agree_and_of_another_do_not(value: int, other: int) -> None:
    for mine, theirs in zip(rewrites(value), rewrites(other), strict=True):
        right = [[boxed(mine), f"<answer>{mine}</answer>"], [str(value)] * 2]
        assert accuracy(*right) == [1.0, 1.0], mine
        wrong = accuracy([boxed(theirs)], [mine])
        assert wrong == [float(other == value or ("%" in theirs and other * 100 == value))], (mine, theirs)


@settings(max_examples=200, deadline=None)
@given(INTEGERS, INTEGERS, st.integers(1, 999))
def test_no_operation_stands_for_its_value(a: int, b: int, c: int) -> None:
    copies = {f"{a}+{b}": a + b, f"{a}-{b}": a - b, f"{a}*{b}": a * b, rf"{a}\times {b}": a * b, f"{a * c}/{c}": a}
    copies |= {rf"\frac{{{a * c}}}{{{c}}}": a, rf"\sqrt{{{a * a}}}": abs(a), f"{c}^2": c * c, f"x={a}-{b}": a - b}
    for copy, value in copies.items():
        assert accuracy([boxed(copy)], [str(value)]) == [0.0], copy
        assert settle(Question(read_gold(value), read_answer(copy))) is Verdict.WRONG  # without math-verify


@settings(max_examples=100, deadline=None)
@given(st.integers(-999, 999), st.integers(2, 999), st.integers(1, 9))
def test_fractions(over: int, under: int, times: int) -> None:
    value = Fraction(over, under)
    forms = [f"{over}/{under}", rf"\frac{{{over * times}}}{{{under * times}}}", rf"\dfrac{{{over}}}{{{under}}}"]
    expected = float(value.denominator > 1)
    assert accuracy([boxed(form) for form in forms], [str(value)] * 3) == [expected] * 3
    assert accuracy([boxed(str(value))] * 3, forms) == [1.0] * 3
    assert accuracy([boxed(f"{over + 1}/{under}")], [str(value)]) == [0.0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9999), st.integers(-30, 30), st.integers(1, 9999))
def test_times_notation(digits: int, exponent: int, other: int) -> None:
    mantissas = [f"{value // 1000}.{value % 1000:03}" for value in (digits, other)]
    mine, theirs = ([rf"{m} \times 10^{{{exponent}}}", f"{m}e{exponent}"] for m in mantissas)
    assert accuracy(list(map(boxed, mine)), mine[::-1]) == [1.0, 1.0]
    assert accuracy(list(map(boxed, theirs)), mine) == [float(digits == other)] * 2


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=4, max_size=4), st.sampled_from(["pmatrix", "bmatrix"]))
def test_matrices(cells: list[int], kind: str) -> None:
    def matrix(a: int, b: int, c: int, d: int, space: str) -> str:
        return rf"\begin{{{kind}}}{space}{a}{space}&{space}{b}{space}\\{space}{c}{space}&{d}\end{{{kind}}}"

    a, b, c, d = cells
    golds = [matrix(*cells, space=space) for space in (" ", "", "\n")]
    assert accuracy([boxed(gold) for gold in golds], golds[1:] + golds[:1]) == [1.0] * 3
    assert accuracy([boxed(matrix(a, c, b, d, " "))], golds[:1]) == [float(b == c)]
    assert accuracy([boxed(matrix(c, d, a, b, " "))], golds[:1]) == [float((a, b) == (c, d))]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 10**6))
def test_decimals_against_exact_forms(square: int) -> None:
    if math.isqrt(square) ** 2 == square:
        return
    exact, decimal = rf"\sqrt{{{square}}}", repr(math.sqrt(square))
    assert accuracy([boxed(exact), boxed(decimal)], [decimal, exact]) == [1.0, 1.0]
    assert (
        accuracy([boxed(rf"\sqrt{{{square + 1}}}"), boxed(f"{math.sqrt(square) + 0.01:.6f}")], [decimal, exact])
        == [0.0] * 2
    )


def test_anywhere_takes_no_question_for_its_answer() -> None:
    texts = ["the answer is 82-49", "the answer is $82-49$", "it is 66/2", r"it is $\frac{66}{2}$", "it is $33$", "33"]
    assert accuracy(texts, ["33"] * 6, extract="anywhere") == [0.0] * 4 + [1.0] * 2
    assert accuracy(texts, ["33"] * 6, extract="anywhere", simplified=False) == [1.0] * 6
    assert accuracy(["so it is 1/2", "$0.5$"], ["0.5", "1/2"], extract="anywhere") == [1.0, 1.0]


def test_trls_convention_where_asked() -> None:
    answers = ["82-49", r"\frac{66}{2}", r"\sqrt{1089}", "34", "82-48"]
    assert accuracy([boxed(answer) for answer in answers], ["33"] * 5, simplified=False) == [1.0] * 3 + [0.0] * 2
    assert reasoning_accuracy([f"</think>{boxed('82-49')}"], ["33"]) == [0.0]
    assert reasoning_accuracy([f"</think>{boxed('82-49')}"], ["33"], simplified=False) == [1.0]


@pytest.mark.parametrize(("text", "gold", "score"), [("66/2", "33", 0.0), ("1/2", "0.5", 1.0), ("82-49", "33", 0.0)])
def test_number_match_wants_the_number_itself(text: str, gold: str, score: float) -> None:
    assert number_match([f"it is {text}"], [gold]) == [score]
    assert number_match(["it is 66/2"], ["33"], simplified=False) == [1.0]


def test_a_tolerance_is_for_golds_that_are_decimals() -> None:
    rows = [
        ("3.14", "3.15", 1.0),
        ("3.14", r"\pi", 1.0),
        ("3.14", "3.2", 0.0),
        ("3", "3.001", 0.0),
        ("1/3", "0.333", 0.0),
    ]
    rows += [("2.0e8", r"2.01 \times 10^8", 1.0), ("-3.14", "3.14", 0.0), ("3.14", "1.57*2", 0.0)]
    scores = accuracy([boxed(answer) for _, answer, _ in rows], [gold for gold, _, _ in rows], relative_tolerance=0.01)
    assert scores == [score for *_, score in rows]
    assert accuracy([boxed("3.15")], ["3.14"]) == [0.0]
    assert number_match(["about 3.15"], ["3.14"], relative_tolerance=0.01) == [1.0]
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"relative_tolerance=.*: use a number from 0 to less than 1"):
            accuracy([""], ["1"], relative_tolerance=wrong)


def test_a_step_has_a_budget_and_what_is_over_it_is_counted() -> None:
    logged: Counter[str] = Counter()
    accuracy([boxed(r"1+\sqrt2")] * 2, [HANGING_GOLD, "x+1"])  # the processes are up
    hanging = [boxed(HANGING[7:-1] + f"+{number}") for number in range(40)]
    start = time.monotonic()
    scores = accuracy(
        [*hanging, boxed("5")], [HANGING_GOLD] * 40 + ["5"], step_timeout_s=2.0, log_metric=log_to(logged)
    )
    assert time.monotonic() - start < 20
    assert scores == [0.0] * 40 + [1.0]
    assert logged["rewards/accuracy/timeouts"] == 40


def test_a_copy_of_a_gold_needs_no_math_verify() -> None:
    golds = [r"\frac{\sqrt{3}}{2}", "x^2 - 1", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "[0, ∞)", r"\{1, 2\}"]
    assert [settle(Question(read_gold(gold), read_answer(gold))) for gold in golds] == [Verdict.RIGHT] * 5
    broken = [r"\frac{", r"\frac{1}{0}", "1/0+x", "x +"]
    assert [settle(Question(read_gold(gold), read_answer(gold))) for gold in broken] == [None] * 4
