r"""Numbers as they are written: exact values and their form, and nothing that is left to calculate.

`18`, `-3`, `1,234`, `1 234`, `.5`, `2e3`, `1.6 \times 10^{-19}`, `0.\overline{3}`, `3/4`, `\frac34`, `1 1/2`, `6:4`,
and the same with a percent sign, a currency sign, a unit (`18\text{ m/s}^2`, `5 cm^2`, `45^\circ`) or a scale word
(`3 million`) around them. Units are dropped, not compared: 5 m equals 5 cm. `12:30` is a time, no ratio.
"""

import re
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from grpo_lab.rewards.notation import normalize

MAX_NUMBER_CHARS = 100  # bounds the digits, hence the time, of exact arithmetic


class Form(Enum):
    LITERAL = "digits, a decimal or times-notation"
    FRACTION = "a fraction, a mixed number or a ratio"
    POWER = "a power of ten without a factor"


@dataclass(frozen=True)
class Number:
    """`value` of a percentage is as written: 50 for 50%. `step` is the unit of a decimal's last digit, else None."""

    value: Fraction
    form: Form = Form.LITERAL
    percent: bool = False
    step: Fraction | None = None


_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?:\ [0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:(?:[€£¥₹₩₽¢]|\\pounds|\\euro|US|USD|EUR|GBP|Rs\.?)\s*)?(?P<second_sign>[+-]?)\s*
    (?:(?:(?P<whole>[0-9]+)\s*)?\\frac\s*(?:\{{\s*(?P<over>-?{_INTEGER})\s*\}}|(?P<over_digit>[0-9]))
           \s*(?:\{{\s*(?P<under>-?{_INTEGER})\s*\}}|(?P<under_digit>[0-9]))
      |(?:(?P<slash_whole>[0-9]+)\s+)?(?P<slash_over>{_INTEGER})\s*(?:/|:|\\colon\s)\s*(?P<slash_under>{_INTEGER})
           (?![0-9.:])
      |(?P<stem>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\s*\{{(?P<repeated>[0-9]+)\}}
      |(?P<digits>{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)
           (?:[eE](?P<exponent>[+-]?[0-9]{{1,3}})(?![0-9])
             |\s*(?:\\times|\\cdot|\\ast|\*|x)\s*\{{?10\}}?\s*\^\s*(?:\{{\s*(?P<raised>[+-]?\s*[0-9]{{1,3}})\s*\}}
                 |(?P<raised_bare>[+-]?\s?[0-9]{{1,3}}))(?![0-9]))?
    )""",
    re.VERBOSE,
)
_POWER = re.compile(r"([+-]?)\s*10\s*\^\s*\{?\s*([+-]?[0-9]{1,3})\s*\}?")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_UNIT_FRACTION = re.compile(r"\\frac\s*\{\s*([A-Za-z]+)\s*\}\s*\{\s*([A-Za-z]+)\s*\}")
_SIZE = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_CLOCK = re.compile(r"([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)
_UNIT = re.compile(
    r"(?P<word>[A-Za-z]+(?:-[A-Za-z]+)*)\.?(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9]))?"
    r"|\^\s*\\circ|[€£¥₹₩₽¢]|\\Omega|\\cents?|\\pounds|\\euro"
)
_UNIT_SEPARATOR = re.compile(r"\s*(?:/|\\cdot(?![A-Za-z])|\s)\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|per\s?cent(?:age points?)?\b)", re.IGNORECASE)
_SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_SHORT_UNITS = """
    mm cm dm km nm ft in yd mi mg kg lb oz ms hr dl cl ml dL cL mL Hz kW Pa eV mA kV kJ GB MB KB TB m g s h l L N J
    W V A K C F t sq cu of per a an pm am
"""
_GLUED = """
    dollar dollars cent cents inch inches foot feet meter meters metre metres mile miles hour hours minute minutes
    second seconds day days degree degrees unit units euro euros pound pounds lbs mph kph kcal cal mol rad deg min
    sec gal hrs mins secs
"""
_NOT_UNITS = """
    and or not plus minus times over by point squared cubed factorial sqrt cbrt sin cos tan cot sec csc log exp inf
    infinity pi tau phi theta alpha beta gamma delta lambda sigma omega more less fewer greater smaller larger than
    if when where unless until except without choose mod modulo divided multiplied added subtracted raised power
    double triple twice thrice half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths
    seventh sevenths eighth eighths ninth ninths tenth tenths eleventh elevenths twelfth twelfths hundredth
    hundredths thousandth thousandths millionth millionths zero one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty
    seventy eighty ninety negative inverse reciprocal equals through between but nor either maybe perhaps probably
    then else mean also xor versus
"""


def read_number(text: str) -> Number | None:
    """What is written, of normalized text; None for anything else, a time of day included."""
    text = _flat(text)
    if not text or len(text) > MAX_NUMBER_CHARS or _CLOCK.fullmatch(text):
        return None
    power = _POWER.fullmatch(text)
    if power is not None:
        value = Fraction(10) ** int(power[2])
        return Number(-value if power[1] == "-" else value, Form.POWER)
    match = _NUMBER.match(text)
    number = None if match is None else _written(match)
    return None if match is None or number is None else _with_units(number, text[match.end() :])


def plain_number(text: str) -> Fraction | None:
    """The exact value of a number, None for anything else."""
    number = read_number(normalize(text)) if len(text) <= MAX_NUMBER_CHARS else None
    return None if number is None else number.value


def read_clock(text: str) -> tuple[int, str | None] | None:
    """Seconds since midnight or noon, and `a` or `p` where that is said; None where the text is no time of day."""
    match = _CLOCK.fullmatch(_flat(text))
    if match is None:
        return None
    hour = int(match[1])
    half = match[4].lower() if match[4] else "a" if hour in (0, 24) else "p" if hour > 12 else None
    return hour % 12 * 3600 + int(match[2]) * 60 + int(match[3] or 0), half


def _flat(text: str) -> str:
    """Without the commands and brackets that change no number."""
    text = _UNIT_FRACTION.sub(r" \1/\2", _TEXT.sub(r" \1 ", _SIZE.sub("", text)))
    text = " ".join(text.split())
    while text and text[0] + text[-1] in ("{}", "()") and not set(text[1:-1]) & set("(){}"):
        text = text[1:-1].strip()
    return text


def _written(match: re.Match[str]) -> Number | None:
    """The number itself, without what follows it."""
    sign = -1 if "-" in (match["sign"], match["second_sign"]) else 1
    if match["sign"] and match["second_sign"]:
        return None
    if match["repeated"] is not None:
        return Number(sign * _repeating(match["stem"], match["fixed"], match["repeated"]))
    if match["digits"] is None:
        value = _fraction(match)
        return None if value is None else Number(sign * value, Form.FRACTION)
    digits = match["digits"].replace(",", "").replace(" ", "")
    exponent = int((match["exponent"] or match["raised"] or match["raised_bare"] or "0").replace(" ", ""))
    places = len(digits.partition(".")[2])
    plain = "." not in digits and not exponent
    scale = Fraction(10) ** exponent
    return Number(sign * Fraction(digits) * scale, step=None if plain else scale / 10**places)


def _fraction(match: re.Match[str]) -> Fraction | None:
    over = match["over"] or match["over_digit"] or match["slash_over"]
    under = match["under"] or match["under_digit"] or match["slash_under"]
    whole = match["whole"] or match["slash_whole"]
    above, below = (int(part.replace(",", "").replace(" ", "")) for part in (over, under))
    if below == 0 or (whole and not 0 <= above < below):
        return None
    return Fraction(above, below) + int(whole or 0)


def _repeating(stem: str, fixed: str, repeated: str) -> Fraction:
    """0.1(6) is (16 - 1) / 90."""
    nines = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return Fraction(int(stem + fixed + repeated) - int(stem + fixed or "0"), nines)


def _with_units(number: Number, rest: str) -> Number | None:
    """None where what follows is not percent, units and words of scale."""
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    scale = Fraction(1)
    first, *more = _UNIT_SEPARATOR.split(_UNIT_POWER.sub(r"\1", rest).rstrip())
    for token in [first, *more] if first else more:
        match = _UNIT.fullmatch(token)
        glued = token is first
        if match is None or (match["word"] and not _is_unit(match["word"], glued)):
            return None
        scale *= _SCALES.get((match["word"] or "").lower().removesuffix("s"), 1)
    step = None if number.step is None else number.step * scale
    return Number(number.value * scale, number.form, percent is not None, step)


_UNIT_POWER = re.compile(r"\s*(\^)\s*")


def _is_unit(word: str, glued: bool) -> bool:
    """A word of one or two letters only where it is a unit: others are variables and conjunctions."""
    if len(word) <= 2:
        return word in _SHORT_UNITS.split() and not (glued and len(word) == 1)
    known = not set(_NOT_UNITS.split()).intersection(word.lower().split("-"))
    return known and (not glued or word.lower() in _GLUED.split())


def latex_of(number: Fraction) -> str:
    if number.denominator == 1:
        return str(number.numerator)
    sign = "-" if number < 0 else ""
    return rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
