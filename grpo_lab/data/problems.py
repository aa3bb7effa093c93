"""Generated problems, endless and told apart: sums of two or three numbers, and the numbers game Countdown.

Whether a problem belongs to train or test depends on the problem alone, so the splits are disjoint across all
seeds: a model trained on any train split has seen no test problem.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

TEST_SHARE = 10  # one problem in ten is a test problem
PATIENCE = 10_000  # draws in a row without a new problem before the supply counts as used up

T = TypeVar("T")


class Level(NamedTuple):
    """The problems of one difficulty: `terms` operands in 0..`largest`, any of `operators` between them."""

    terms: int
    operators: str
    largest: int


LEVELS = {
    1: Level(2, "+", 99),
    2: Level(2, "+-", 99),
    3: Level(3, "+-", 99),
    4: Level(2, "+-*", 99),
    5: Level(3, "+-*", 99),
}


class Problem(NamedTuple):
    """An expression such as 3+4*5: `numbers` (3, 4, 5) and `operators` ("+", "*")."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    def __str__(self) -> str:
        pairs = zip(self.operators, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{operator}{number}" for operator, number in pairs)


@dataclass(frozen=True)
class Puzzle:
    """Numbers in ascending order, the target that they make, each used once, and one way to make it."""

    numbers: tuple[int, ...]
    target: int
    solution: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.numbers}={self.target}"


def problem_stream(split: str, *, seed: int, difficulty: int) -> Iterator[Problem]:
    """Endless problems of one split and difficulty, repeats included; the order depends on every argument."""
    level = LEVELS[difficulty]
    rng = random.Random(f"{split}/{seed}/{difficulty}")
    while True:
        numbers = tuple(rng.randint(0, level.largest) for _ in range(level.terms))
        operators = tuple(rng.choice(level.operators) for _ in range(level.terms - 1))
        problem = Problem(numbers, operators)
        if _split_of(problem) == split:
            yield problem


def question(problem: Problem) -> str:
    return f"{problem}=?"


def steps(problem: Problem) -> list[tuple[Problem, int]]:
    """The two-term calculations that solve a problem, products first; the last value is the solution."""
    numbers, operators = list(problem.numbers), list(problem.operators)
    done = []
    while operators:
        at = operators.index("*") if "*" in operators else 0
        step = Problem((numbers[at], numbers[at + 1]), (operators[at],))
        done.append((step, _calculate(numbers[at], operators[at], numbers[at + 1])))
        numbers[at : at + 2] = [done[-1][1]]
        del operators[at]
    return done


def puzzle_stream(split: str, *, seed: int, sizes: Sequence[int], largest: int) -> Iterator[Puzzle]:
    """Endless puzzles of as many numbers as one of `sizes` says; numbers and targets are 1..`largest`."""
    rng = random.Random(f"countdown/{split}/{seed}/{list(sizes)}/{largest}")
    while True:
        numbers = [rng.randint(1, largest) for _ in range(rng.choice(sizes))]
        puzzle = Puzzle(tuple(sorted(numbers)), *_combined([(number, str(number)) for number in numbers], rng))
        if puzzle.target <= largest and puzzle.target not in numbers and _split_of(puzzle) == split:
            yield puzzle


def distinct(stream: Iterator[T], size: int) -> list[T]:
    """The first `size` different items; fewer where the stream has no more."""
    found: dict[T, None] = {}
    misses = 0
    for item in stream:
        misses = misses + 1 if item in found else 0
        found[item] = None
        if len(found) == size or misses > PATIENCE:
            break
    return list(found)


def _split_of(problem: Problem | Puzzle) -> str:
    return "test" if zlib.crc32(str(problem).encode()) % TEST_SHARE == 0 else "train"


def _calculate(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _combined(terms: list[tuple[int, str]], rng: random.Random) -> tuple[int, str]:
    """Join two random terms again and again until one is left; all values on the way are positive integers."""
    while len(terms) > 1:
        (right, right_text), (left, left_text) = sorted(terms.pop(rng.randrange(len(terms))) for _ in range(2))
        operator = rng.choice("+*" + "-" * (left > right) + "/" * (left % right == 0))
        value = left // right if operator == "/" else _calculate(left, operator, right)
        terms.append((value, f"({left_text}{operator}{right_text})"))
    value, text = terms[0]
    return value, text[1:-1]
