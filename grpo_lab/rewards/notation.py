r"""One spelling for what is written in many: blanks, Unicode signs, LaTeX's spacing and wrappers.

The result is LaTeX that math-verify reads, on one line. Nothing here decides what a text means.
"""

import re
import unicodedata

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_SIGNS = str.maketrans(
    {
        **{"−": "-", "‒": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div "},
        **{"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "∘": r"^\circ ", "±": r"\pm ", "θ": r"\theta "},
        **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap "},
        **{
            "∅": r"\emptyset ",
            "ℝ": r"\mathbb{R}",
            "⁄": "/",
            "∕": "/",
            "％": "%",
            "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        },
        **{"α": r"\alpha ", "β": r"\beta ", "\u200b": "", "\u2061": "", "\ufeff": "", "｢": "", "，": ","},
    }
)
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUPERSCRIPT = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_ROOT = re.compile(r"([√∛])\s*(\{|\(|[0-9]+(?:\.[0-9]+)?|[A-Za-z])?")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_CONTROL = r"(?<!\\)((?:\\\\)*)\\"  # a backslash that belongs to no row end
_NO_SPACE = re.compile(rf"{_CONTROL}!\s*|{_CONTROL}[,;:]")
_SPACE = re.compile(rf"{_CONTROL} ")
_STYLE = re.compile(r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])\s*")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_DEGREE = re.compile(r"\^\s*\{\s*\\circ\s*\}|\\degree(?![A-Za-z])")


def normalize(text: str) -> str:
    r"""LaTeX on one line, without dollars, thin spaces and what is around the whole."""
    text = _strip_wrappers(" ".join(_plain_signs(text).split()))
    text = _NO_SPACE.sub(r"\1\2", text).replace("{,}", ",")
    text = _SPACE.sub(r"\1 ", text).replace("~", " ")
    text = _FRACTION.sub(r"\\frac", _STYLE.sub("", _DEGREE.sub(r"^\\circ ", text)))
    return text.replace(r"\$", "").replace("$", "").replace("**", "^").strip()


def _plain_signs(text: str) -> str:
    if text.isascii():
        return text
    text = _VULGAR.sub(_vulgar, text)
    text = _SUPERSCRIPT.sub(lambda match: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, match[0])) + "}", text)
    return _ROOT.sub(_root, text).translate(_SIGNS)


def _vulgar(match: re.Match[str]) -> str:
    over, under = unicodedata.normalize("NFKC", match[0]).split("\N{FRACTION SLASH}")
    return rf"\frac{{{over}}}{{{under}}}"


def _root(match: re.Match[str]) -> str:
    command = r"\sqrt" if match[1] == "√" else r"\sqrt[3]"
    return command + (match[2] if match[2] in ("{", "(") else f"{{{match[2] or ''}}}")


def _strip_wrappers(text: str) -> str:
    text = text.strip().rstrip(".").strip()
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip().rstrip(".").strip()
    return text


_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?")
_MATRIX = re.compile(r"\\(?:begin|end)\{[a-zA-Z]*matrix\}")
_THOUSANDS = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
_BRACKETED = re.compile(r"(?:\\\{|[\[(])(.*?)(?:\\\}|[\])])")
_BRACKET = re.compile(r"[\[\](){}]")
_SEPARATOR = re.compile(
    r"\\\\|&|;|,|\\(?:text|mbox|textrm|mathrm)\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\lor(?![A-Za-z])|\\?[{}]|[\[\]()]"
)


def split_items(text: str) -> list[str]:
    r"""The items of a list, tuple, set, interval or matrix; the text itself where it is none of these.

    Splits where no bracket is open: at commas (not those between thousands), semicolons, `and`, `or`, a matrix's `&`
    and row ends. `[0,\infty)` has two items, `f(2,3)` has one.
    """
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), _MATRIX.sub("", _SIZE.sub("", text)).strip())
    inside = _BRACKETED.fullmatch(text)
    text = inside[1] if inside and _closes_at_end(text) else text
    items, depth, start = [], 0, 0
    for token in _SEPARATOR.finditer(text):
        if token[0][-1] in "{[(":
            depth += 1
        elif token[0] in ("}", "\\}", "]", ")"):
            depth -= 1
        elif depth == 0:
            items.append(text[start : token.start()])
            start = token.end()
    return [item.strip() for item in [*items, text[start:]]]


def _closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last character and not before: `(1,2)`, not `(1,2),(3,4)`."""
    depth = 0
    for token in _BRACKET.finditer(text):
        depth += 1 if token[0] in "[({" else -1
        if depth == 0:
            return token.end() == len(text)
    return False
