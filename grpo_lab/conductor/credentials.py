"""What a run needs of others once its model is loaded: W&B's and the Hub's leave, and a folder; tried before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.store import tracker

PATIENCE_S = 8.0
"""Time limit of an answer, name look-up included."""
KEY_CHARS = 40
"""Length below which wandb takes no key (sdk/lib/wbauth/validation.py)."""


def check(config: Config, folder: Path) -> tuple[str, ...]:
    """Notes on what could not be asked.

    Raises:
        RequestError: for a key or token that is refused, and for a run's `folder` that cannot be written.
    """
    check_folder(folder)
    return (*_check_wandb(config), *_check_hub(config.publish.repo_id))


def check_folder(folder: Path) -> None:
    """Raises RequestError where the folder, or the nearest above it that is there, cannot be written."""
    whole, way_out = folder.absolute(), "runs_dir= sets another folder"
    try:
        place = next(place for place in (whole, *whole.parents) if place.exists())
    except OSError as error:
        raise RequestError(f"{folder} cannot be read ({error.strerror}); {way_out}") from error
    if not place.is_dir():
        raise RequestError(f"{place} is a file, so no run can go there; {way_out}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RequestError(f"{place} cannot be written by this user ({os.getuid()}); {way_out}")


def _check_wandb(config: Config) -> tuple[str, ...]:
    asked = config.tracker
    if asked.kind != "wandb" or asked.mode != "online" or not (key := tracker.wandb_key()):
        return ()
    host, way_out = tracker.wandb_url(), "set WANDB_API_KEY, run `wandb login`, or tracker.mode=offline"
    if key.count(".") != 2 and len(key.partition("-")[2] or key) < KEY_CHARS:
        raise RequestError(f"tracker.mode=online: the W&B key has less than {KEY_CHARS} characters; {way_out}")
    refused, silence = _asked_wandb(host, key)
    if refused:
        raise RequestError(f"tracker.mode=online: {host} refuses the W&B key; {way_out}")
    return (f"the W&B key was not checked: {host} {silence}",) if silence else ()


@cache
def _asked_wandb(host: str, key: str) -> tuple[bool, str]:
    """Whether the key is refused, and why there is no answer; the points of a sweep ask once."""
    query = {"query": "query Viewer { viewer { username } }"}
    answer, silence = _answered("POST", f"{host}/graphql", json=query, auth=("api", key))
    return not silence and not (answer.get("data") or {}).get("viewer"), silence


def _check_hub(repo_id: str | None) -> tuple[str, ...]:
    from huggingface_hub import constants, get_token

    token = get_token() if repo_id is not None else None
    if token is None:
        return ()
    answer, silence = _asked_hub(constants.ENDPOINT, token)
    wrong, way_out = f"publish.repo_id={repo_id}", "set HF_TOKEN or run `hf auth login`"
    if not silence and not answer:
        raise RequestError(f"{wrong}: {constants.ENDPOINT} refuses the token; {way_out}")
    if answer.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RequestError(f"{wrong}: the token of {answer.get('name')} can only read; {way_out} with one that writes")
    return (f"the Hugging Face token was not checked: {constants.ENDPOINT} {silence}",) if silence else ()


@cache
def _asked_hub(endpoint: str, token: str) -> tuple[Any, str]:
    return _answered("GET", f"{endpoint}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"})


def _answered(method: str, url: str, **given: Any) -> tuple[Any, str]:
    """The JSON object of an answer, {} where the credentials are refused; and why there is none, in words."""
    import requests

    def ask() -> tuple[Any, str]:
        try:
            answer = requests.request(method, url, timeout=PATIENCE_S / 2, **given)
            if answer.status_code in (401, 403):
                return {}, ""
            answer.raise_for_status()
            content = answer.json()
        except (requests.RequestException, ValueError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            return {}, f"answered {status}" if status else f"cannot be asked ({type(error).__name__})"
        return (content, "") if isinstance(content, dict) else ({}, "answered something else")

    return _within(PATIENCE_S, ask) or ({}, f"did not answer within {PATIENCE_S:g} s")


def _within(seconds: float, ask: Callable[[], tuple[Any, str]]) -> tuple[Any, str] | None:
    """The answer, or None after so many seconds: no time limit of requests ends the look-up of a name."""
    answers: list[tuple[Any, str]] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
