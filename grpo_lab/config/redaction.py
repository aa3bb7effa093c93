"""Keep credentials out of what is saved, logged or published.

A text value is a secret where its key says so (`hf_token`, `WANDB_API_KEY`, `db.password`), or where it looks
like a known kind of token. Numbers stay, so `max_tokens: 512` does, and so do the names of special tokens and
of columns. What was redacted cannot be read back: pass secrets through the environment, not through the
config a worker loads.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET = {"secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "apikey", "bearer"}
_SECRET_LAST = {"token", "tokens", "key", "keys", "auth", "pat"}
_HARMLESS_BEFORE = {
    "token": "max min num total eos bos pad unk sep cls mask image video audio stop start end special",
    "key": "sort group primary prompt solution answer column row cache metric query label text",
}
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsru]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|wandb_v\d_\w{16,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)"
)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_ASSIGNMENT = re.compile(r"([\w.-]+)(=)(\"[^\"]*\"|'[^']*'|[^\s&,}]+)")
_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy with every secret replaced by `***`, also in lists of arguments and command lines."""
    return {key: _redact(value, is_secret_name(str(key))) for key, value in config.items()}


def is_secret_name(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if _SECRET.intersection(words):
        return True
    if not words or words[-1] not in _SECRET_LAST:
        return False
    harmless = _HARMLESS_BEFORE.get(words[-1].removesuffix("s"), "").split()
    return not set(harmless).intersection(words[:-1])


def redact_text(text: str) -> str:
    """Replace known kinds of token, credentials in URLs, and the value in `NAME=value` of a secret name."""
    text = _URL_CREDENTIALS.sub(REDACTED, _TOKEN.sub(REDACTED, text))
    return _ASSIGNMENT.sub(lambda m: m[1] + m[2] + (REDACTED if is_secret_name(m[1]) else m[3]), text)


def redact_command(argv: Sequence[str]) -> str:
    """A command line for the record: `NAME=value` of a secret name without the value, blanks in it or not."""
    return shlex.join(map(redact_argument, argv))


def redact_argument(text: str) -> str:
    """An override for the record; a dictionary of environment variables is hidden as a whole."""
    name, equals, value = text.partition("=")
    hidden = is_secret_name(name) or name.endswith("vllm.env")
    return f"{name}={REDACTED}" if equals and value and hidden else redact_text(text)


def _redact(value: Any, secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _redact(item, secret or is_secret_name(str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(item, secret or _follows_secret_option(value, i)) for i, item in enumerate(value)]
    if not isinstance(value, str) or not value:
        return value
    return REDACTED if secret else redact_text(value)


def _follows_secret_option(items: list[Any] | tuple[Any, ...], index: int) -> bool:
    """`["--api-key", "abc"]`: whether the item before names a secret."""
    before = items[index - 1] if index else None
    return isinstance(before, str) and _OPTION.fullmatch(before) is not None and is_secret_name(before)
