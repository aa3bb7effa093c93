"""A finished run's policy and model card on the Hugging Face Hub: what goes, and whether it can.

The last checkpoint's weights and tokenizer go, the card, and config.yaml, whose secrets were left out when it was
written.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from grpo_lab.conductor.adornment import adorn
from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.jobs import PublishConfig
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Run
from grpo_lab.store.model_card import card
from grpo_lab.store.records import Published, Result

WEIGHTS = "*.safetensors"
GOES = (
    WEIGHTS,
    "*.safetensors.index.json",
    "*config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "README.md",
)
"""Of a checkpoint; the optimizer's and the trainer's state stay."""


class PublishFailed(RuntimeError):
    """The Hub could not be reached, or did not take it. The run is as it was."""


def check(settings: PublishConfig) -> None:
    """Raises RequestError where publishing cannot work, without asking the Hub."""
    if settings.repo_id is None:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    wrong = f"publish.repo_id={settings.repo_id}"
    try:
        validate_repo_id(settings.repo_id)
    except HFValidationError as error:
        raise RequestError(f"{wrong}: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise RequestError(f"{wrong}: HF_HUB_OFFLINE is set; unset it, or publish later")
    if not get_token():
        raise RequestError(f"{wrong}: no Hugging Face token; set HF_TOKEN or run `hf auth login`")


def once(run: Run, settings: PublishConfig, console: Console) -> None:
    """At the end of a run: publish it where that is asked for and not done. A failure is told and leaves the run
    finished."""
    before = records.read(run.published, Published)
    if settings.repo_id is None or (before and before.repo_id == settings.repo_id):
        return
    again = shlex.join(["python", "-m", "grpo_lab.publish", str(run.folder), *_overrides(settings)])
    adorn(console, f"not published: {settings.repo_id}", lambda: upload(run, settings, console), again)


def _overrides(settings: PublishConfig) -> list[str]:
    return [f"publish.repo_id={settings.repo_id}", *([] if settings.private else ["publish.private=false"])]


def write_card(run: Run) -> list[Path]:
    """Put the card beside the last checkpoint's weights; the files to publish, that one included.

    Raises:
        RequestError: for a run that has not finished, or has no weights.
    """
    result, checkpoint = records.read(run.result, Result), run.last_checkpoint()
    if result is None or result.status != "finished":
        state = result.status if result else "no run that has ended"
        raise RequestError(f"{run.folder}: {state}; only a finished run goes")
    if checkpoint is None or not any(checkpoint[0].glob(WEIGHTS)):
        raise RequestError(f"{run.folder}: its last checkpoint has no {WEIGHTS}")
    store.write_text(checkpoint[0] / "README.md", card(run))
    return sorted(
        file for file in checkpoint[0].iterdir() if any(fnmatch.fnmatch(file.name, pattern) for pattern in GOES)
    )


def upload(run: Run, settings: PublishConfig, console: Console) -> None:
    """One commit with all files; the same again changes nothing. Raises RequestError, PublishFailed."""
    files = {file.name: file for file in (*write_card(run), run.config)}
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        repo = api.create_repo(str(settings.repo_id), private=settings.private, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        commit = api.create_commit(repo.repo_id, additions, commit_message=f"{run.folder.name}, trained by grpo-lab")
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # Beside HTTP's and the network's own, what hf_xet and the LFS protocol raise.
        raise PublishFailed(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    records.write(run.published, Published(str(settings.repo_id), commit.oid))
    console.print(f"  published        {repo}", soft_wrap=True)


def publish(folder: Path, overrides: Sequence[str], console: Console) -> None:
    """Raises RequestError, PublishFailed."""
    for word in overrides:
        if not word.startswith("publish.") or "=" not in word:
            raise RequestError(f"{word}: only publish.repo_id= and publish.private= can be set here")
    run = Run(folder)
    if not run.config.is_file():
        raise RequestError(f"{folder}: no run there")
    asked = {"publish": dataclasses.asdict(configuration.load(run.config).publish)}
    schema = OmegaConf.structured({"publish": PublishConfig})
    merged = OmegaConf.to_object(OmegaConf.merge(schema, asked, OmegaConf.from_dotlist(list(overrides))).publish)
    assert isinstance(merged, PublishConfig)
    check(merged)
    if merged.repo_id is not None:
        upload(run, merged, console)
        return
    for file in (*write_card(run), run.config):
        console.print(f"  {os.path.getsize(file):>14,} bytes  {file}", soft_wrap=True)
    console.print("nothing is published; publish.repo_id=owner/name does")
