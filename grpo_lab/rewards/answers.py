r"""From text to an answer: which part of a completion is the answer, and whether it is a plain number.

Plain numbers are compared exactly, without math-verify. They are `18`, `-3`, `1,234`, `.5`, `3/4`, `1 1/2`,
`2e3`, and the same with a currency sign, a unit (`18 dollars`, `18\text{ cm}`) or a scale word (`3 million`)
around them. Units are dropped, not compared: 5 m equals 5 cm. A percent sign is remembered: 50% equals 50%
exactly, and 50 or 0.5 where the other side has no percent sign.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import prod

MAX_CHARS = 1_000  # a longer answer is no answer
MAX_NUMBER_CHARS = 100  # bounds the digits, hence the time, of exact arithmetic

_BOX_TOKENS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_SPACING = re.compile(r"(?<!\\)\\[!,;:]")
_PERCENT = re.compile(r"\s*(?:\\?%|\bper ?cent)$")
_NUMBER = re.compile(
    r"""(?P<sign>[+-]?)\s*
    (?:(?P<whole>[0-9]+)\s+(?=[0-9]+/[0-9]))?
    (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)
    (?:[eE](?P<exponent>[+-]?[0-9]{1,2})|\s*/\s*(?P<divisor>[0-9]+))?
    \s*(?:\\(?:text|textrm|textbf|mathrm|mbox)\{(?P<unit>[A-Za-z\s.]*)\}
       |(?P<words>[A-Za-z]{3,}(?:\ +[A-Za-z]+)*))?""",
    re.VERBOSE,
)
_WORDS = re.compile(r"(?:\\text\{)?\s*((?:[A-Za-z]{3,}|no)(?:\s+[A-Za-z]+)*)\s*\}?", re.IGNORECASE)
_SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NOT_UNITS = (
    "and or not to half plus minus times over by point squared cubed factorial sqrt sin cos tan log exp inf infinity"
)


@dataclass(frozen=True)
class Answer:
    """`text` as given to math-verify; `number` where it is plain (a percentage as written: 50 for 50%)."""

    text: str
    number: Fraction | None = None
    percent: bool = False

    @property
    def words(self) -> str | None:
        """Lower-case words where the answer is only that: math-verify reads them as products of letters."""
        match = _WORDS.fullmatch(self.text)
        return " ".join(match[1].lower().split()) if match else None


def last_answer(text: str) -> str | None:
    r"""What stands in the last `<answer>` pair or closed `\boxed`, whichever ends later; linear time."""
    tag_end = text.rfind("</answer>")
    tag_start = text.rfind("<answer>", 0, tag_end) if tag_end >= 0 else -1
    box = last_box(text)
    if tag_start >= 0 and (box is None or tag_end > box.stop):
        inside = text[tag_start + len("<answer>") : tag_end]
        inner = last_box(inside)
        return inside if inner is None else inside[inner]
    return None if box is None else text[box]


def last_box(text: str) -> slice | None:
    r"""Where the inside of the last closed `\boxed{...}` is, braces inside it matched."""
    first = text.find(r"\boxed")
    if first < 0:
        return None
    starts: list[int | None] = []  # one per open brace, None where it is not a box's
    last = None
    for token in _BOX_TOKENS.finditer(text, first):
        if token[0][-1] == "{" and token[0] != r"\{":
            starts.append(token.end() if len(token[0]) > 1 else None)
        elif token[0] == "}" and starts:
            start = starts.pop()
            last = last if start is None else slice(start, token.start())
    return last


def read_answer(text: str) -> Answer:
    """Strip what is only notation; an answer that is too long becomes empty, which nothing equals."""
    if len(text) > MAX_CHARS:
        return Answer("")
    text = _strip_wrappers(text)
    text = _SPACING.sub("", text).replace("{,}", ",").replace("\N{MINUS SIGN}", "-").replace(r"\ ", " ")
    text = text.replace(r"\$", "").replace("$", "").replace("**", "^").strip()
    bare = _PERCENT.sub("", text)
    number = plain_number(bare)
    return Answer(bare if number is None else latex_of(number), number, percent=bare != text)


def _strip_wrappers(text: str) -> str:
    text = text.strip().rstrip(".").strip()
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip().rstrip(".").strip()
    return text


def plain_number(text: str) -> Fraction | None:
    """The exact value of a plain number, `None` for anything else."""
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_CHARS else None
    if match is None or int(match["divisor"] or 1) == 0:
        return None
    words = (match["unit"] or match["words"] or "").lower().replace(".", " ").split()
    if set(_NOT_UNITS.split()).intersection(words):
        return None
    value = Fraction(match["digits"].replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
    value = value / int(match["divisor"] or 1) + int(match["whole"] or 0)
    scale = prod(_SCALES.get(word.removesuffix("s"), 1) for word in words)
    return value * scale * (-1 if match["sign"] == "-" else 1)


def latex_of(number: Fraction) -> str:
    if number.denominator == 1:
        return str(number.numerator)
    sign = "-" if number < 0 else ""
    return rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
