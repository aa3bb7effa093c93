"""System prompts: shipped ones by name, a file, or a text; and the chat messages that they begin.

`r1` is the template of DeepSeek-R1 (arXiv 2501.12948, table 1), `boxed` that of Qwen2.5-Math, `plain` the usual
assistant's. Without a system message some chat templates, Qwen2.5's among them, put in one of their own.
"""

from pathlib import Path
from typing import Any

SHIPPED = {file.stem: file for file in (Path(__file__).parents[1] / "assets" / "prompts").glob("*.txt")}

Message = dict[str, str]


def system_text(asked: str | None) -> str | None:
    """What has white space in it is the text itself; a single word is a shipped prompt, `none`, or else a file."""
    if asked is None or asked == "none":
        return None
    if not isinstance(asked, str):
        raise ValueError(f"system_prompt={asked!r}: a shipped prompt, none, a file, or a text with white space in it")
    if any(letter.isspace() for letter in asked):
        return asked
    file = SHIPPED.get(asked) or Path(asked).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"system_prompt={asked!r} is neither {', '.join(sorted(SHIPPED))}, none nor a file;"
            " a text of your own has white space in it"
        )
    return file.read_text(encoding="utf-8").strip()


def messages(prompt: Any, system: str | None) -> list[Message]:
    """A string becomes the user's message. A system message that a list of messages begins with stays as it is.

    Raises:
        ValueError: for anything else, saying what is wrong with it.
    """
    if isinstance(prompt, str) and prompt.strip():
        chat = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list) and prompt:
        chat = [_message(message) for message in prompt]
    else:
        raise ValueError(f"the prompt is {prompt!r}; it must be a text or a list of chat messages")
    begun = chat[0]["role"] == "system"
    return chat if system is None or begun else [{"role": "system", "content": system}, *chat]


def _message(message: Any) -> Message:
    """Role and content; other keys must be null (columnar files give every message all keys)."""
    given = {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
    if set(given) != {"role", "content"} or not all(isinstance(value, str) for value in given.values()):
        raise ValueError(f"{message!r} is no chat message; it must have 'role' and 'content', both text")
    return {"role": given["role"], "content": given["content"]}
