r"""From text to an answer: which part of a completion or of a gold solution is the answer, and what it is.

Numbers (`grpo_lab.rewards.literals` says which) are compared exactly, without math-verify. A percent sign is
remembered: 50% equals 50% exactly, and 50 or 0.5 where the other side has no percent sign. An equation is read by its
last side: `x=33` and `82-49=33` are 33.
"""

import re
from dataclasses import dataclass

from grpo_lab.rewards.literals import Number, latex_of, plain_number, read_clock, read_number
from grpo_lab.rewards.notation import normalize, split_items

__all__ = ["Answer", "is_missing", "last_answer", "last_box", "plain_number", "read_answer", "read_gold"]

MAX_CHARS = 1_000  # a longer answer is no answer

_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_PERCENT = re.compile(r"\s*(?:\\?%|\bper ?cent)$")
_WORDS = re.compile(r"(?:\\text\{)?\s*((?:[A-Za-z]{3,}|no)(?:\s+[A-Za-z]+)*)\s*\}?", re.IGNORECASE)
_EQUALS = re.compile(r"(?<![<>!=:])=(?!=)|\\approx(?![A-Za-z])")
_SYMBOL = re.compile(
    r"(?:\\text\{[^{}]*\}|\\?[A-Za-z]+)'*(?:_(?:\{[^{}]*\}|\w))?(?:\s*\([^()=]*\))?", re.ASCII
)  # what an equation may be solved for
_ROW = re.compile(r"(?:^|\n)\s*####\s*([^\n]+)")  # GSM8K's answers end so


@dataclass(frozen=True)
class Answer:
    """`text` as given to math-verify; `number` where it is written as one, `clock` where it is a time of day."""

    text: str
    number: Number | None = None
    percent: bool = False
    clock: tuple[int, str | None] | None = None

    @property
    def words(self) -> str | None:
        """Lower-case words where the answer is only that: math-verify reads them as products of letters."""
        match = _WORDS.fullmatch(self.text)
        return " ".join(match[1].lower().split()) if match else None

    @property
    def numbers(self) -> list[Number | None]:
        """Of each item of a list, tuple, set, interval or matrix; empty where the answer is none of these."""
        items = split_items(self.text)
        return [_number(item, any_left=True) for item in items] if len(items) > 1 else []


def last_answer(text: str) -> str | None:
    r"""What stands in the last `<answer>` pair or closed `\boxed`, whichever ends later; linear time."""
    tag_end = text.rfind("</answer>")
    tag_start = text.rfind("<answer>", 0, tag_end) if tag_end >= 0 else -1
    box = last_box(text)
    if tag_start >= 0 and (box is None or tag_end > box.stop):
        inside = text[tag_start + len("<answer>") : tag_end].partition("</answer>")[0]
        inner = last_box(inside)
        return inside if inner is None else inside[inner]
    return None if box is None else text[box]


def last_box(text: str) -> slice | None:
    r"""Where the inside of the last closed `\boxed{...}` is, braces inside it matched."""
    boxes = _boxes(text)
    return boxes[-1] if boxes else None


def _boxes(text: str) -> list[slice]:
    """Insides of all closed boxes, in the order of their ends; linear time."""
    first = next((match.start() for match in re.finditer(r"\\(?:boxed|fbox)", text)), None)
    if first is None:
        return []
    starts: list[int | None] = []  # one per open brace, None where it is not a box's
    boxes = []
    for token in _BOX_TOKENS.finditer(text, first):
        if token[0][-1] == "{" and token[0] != r"\{":
            starts.append(token.end() if len(token[0]) > 1 else None)
        elif token[0] == "}" and starts:
            start = starts.pop()
            if start is not None:
                boxes.append(slice(start, token.start()))
    return boxes


def read_gold(gold: object) -> Answer:
    """A gold may be a bare answer, a whole solution that ends in a tagged one, or a row of GSM8K.

    Several boxes are all of the answer: `x=2, x=3`. None and NaN, which pandas has for None, are empty.
    """
    text = "" if is_missing(gold) else str(gold)
    row = _ROW.findall(text)
    if row:
        return read_answer(row[-1], gold=True)
    if "</answer>" in text and (tagged := last_answer(text)) is not None:
        return read_answer(tagged, gold=True)
    answers = dict.fromkeys(text[box].strip() for box in _outermost(_boxes(text)))
    return read_answer(", ".join(answers) if answers else text, gold=True)


def is_missing(gold: object) -> bool:
    """None and NaN, which pandas has for None."""
    return gold is None or (isinstance(gold, float) and gold != gold)


def _outermost(boxes: list[slice]) -> list[slice]:
    """Those in no other one, of boxes in the order of their ends; in the order of the text."""
    outer: list[slice] = []
    for box in reversed(boxes):
        if not outer or box.start < outer[-1].start:
            outer.append(box)
    return outer[::-1]


def read_answer(text: str, gold: bool = False) -> Answer:
    """Strip what is only notation; an answer that is too long becomes empty, which nothing equals."""
    if len(text) > MAX_CHARS:
        return Answer("")
    inner = last_box(text)
    text = normalize(text if inner is None else text[inner])
    number = _number(text, any_left=not gold)
    if number is not None:
        return Answer(latex_of(number.value), number, number.percent)
    bare = _PERCENT.sub("", text)
    return Answer(bare, percent=bare != text, clock=read_clock(text))


def _number(text: str, any_left: bool) -> Number | None:
    """Of the text, or of the last side of an equation; `any_left`: whatever its other sides are."""
    number = read_number(text)
    if number is not None:
        return number
    *left, last = _EQUALS.split(text)
    if not left or len(split_items(text)) > 1 or not (any_left or _SYMBOL.fullmatch(left[0].strip())):
        return None
    return read_number(last.strip())
