"""The score of a reward model: a sequence classifier with one label, on the trainer's device or behind HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from grpo_lab.rewards.text import Completion

if TYPE_CHECKING:
    import requests

RETRIES = 2


def model(
    prompts: Sequence[Completion],
    completions: Sequence[Completion],
    path: str | None = None,
    dtype: str = "auto",
    url: str | None = None,
    timeout_s: float = 60.0,
    concurrency: int = 16,
    **columns: Any,
) -> list[float]:
    """The logit that a sequence classifier with one label gives to prompt and completion: any number.

    With `path` every process of the trainer loads the classifier, and TRL places, shards and asks it: the prompt and
    the completion through the classifier's own chat template, nothing cut off, all completions of a process in one
    batch. With `url` it is asked through the `/classify` of vLLM (`vllm serve MODEL --runner pooling`), one request a
    completion; that server applies the chat template. An unreachable server or an answer that is none ends the run
    as `bad_reward`.

    Args:
        path: folder or hub id of the classifier, its tokenizer with it.
        dtype: of its weights, as torch calls it; `auto`: as they were saved.
        url: base URL of the server, such as http://host:8000.
        timeout_s: seconds for one try of a request; there are three.
        concurrency: requests at a time, of each process of the trainer.
    """
    if url is None:
        raise ValueError("path= is for the trainer, which loads the classifier itself; url= names a server")

    endpoint = f"{url.rstrip('/')}/classify"
    session = _session(concurrency)

    def score(prompt: Completion, completion: Completion) -> float:
        return _ask(session, endpoint, _conversation(prompt, completion), timeout_s)

    with session, ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(score, prompts, completions))


def _session(connections: int) -> requests.Session:
    """Tries a request again that no answer came to: one broken connection in thousands must not end a run."""
    import requests
    from requests.adapters import HTTPAdapter, Retry

    session = requests.Session()
    retries = Retry(RETRIES, backoff_factor=0.5, allowed_methods=None)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=connections, max_retries=retries))
    return session


def _conversation(prompt: Completion, completion: Completion) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"input": f"{prompt}{completion}"}
    return {"messages": [*prompt, *completion]}


def _ask(session: requests.Session, url: str, conversation: dict[str, Any], timeout_s: float) -> float:
    """The logit. Raises ConnectionError, which names the URL, for everything that is no answer with one."""
    import requests

    question = json.dumps({**conversation, "use_activation": False}, ensure_ascii=False)
    try:
        answer = session.post(
            url,
            data=question.encode(errors="replace"),
            headers={"Content-Type": "application/json"},
            timeout=timeout_s,
        )
    except requests.RequestException as error:
        raise ConnectionError(f"{url}: {error}") from error
    try:
        (logit,) = answer.json()["data"][0]["probs"]  # vLLM's name for what the classifier gives, activated or not
        return float(logit)
    except (LookupError, TypeError, ValueError) as error:
        said = f"{answer.status_code} {answer.text[:200]!r}"
        raise ConnectionError(f"{url}: {said} is no score of a classifier with one label") from error
