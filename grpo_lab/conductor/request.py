"""What was asked: a folder and overrides of its config -> whose weights, and the config to answer under."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from grpo_lab.config import compose as configuration
from grpo_lab.config import model as checkpoint
from grpo_lab.config.cli import quoted
from grpo_lab.config.errors import RequestError
from grpo_lab.config.places import CONF
from grpo_lab.config.redaction import REDACTED
from grpo_lab.config.schema import Config
from grpo_lab.planner.evaluate import AUTO, Policy
from grpo_lab.store.folder import Run

GROUPS = ("model", "data", "rewards", "vllm", "peft", "distributed", "tracker")
_K = re.compile(r"evaluate\.k=(\d+(?:,\d+)*)")


@dataclass(frozen=True)
class Request:
    run: Run
    """Whose folder gets the results; of a model that no run trained it holds nothing else."""
    config: Config
    policy: Policy


def read_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders and overrides. A folder that exists may have a `=` in its name, as those of sweeps have."""
    folders = [word for word in words if Path(word).is_dir() or ("=" not in word and not word.startswith(("~", "+")))]
    overrides = [_K.sub(r"evaluate.k=[\1]", word) for word in quoted([word for word in words if word not in folders])]
    return [Path(folder) for folder in folders], overrides


def read_request(folder: Path | None, overrides: Sequence[str]) -> Request:
    """`folder`: a run, one of its checkpoints, or a model; None takes the model of the overrides.

    Raises:
        RequestError: naming what is not there.
    """
    if folder is None or ((folder / "config.json").is_file() and not _run_of(folder)):
        return _of_model(folder, overrides)
    step = None
    if run := _run_of(folder):
        step, folder = int(folder.name.removeprefix("checkpoint-")), run.folder
    run = Run(folder)
    if not run.config.is_file():
        problem = "no run, checkpoint or model in this folder" if folder.is_dir() else "no such folder"
        raise RequestError(f"{folder}: {problem}; a run's folder has a config.yaml, a model's a config.json")
    config = _composed_on(run, [*overrides, *([] if step is None else [f"evaluate.checkpoint={step}"])])
    return Request(run, config, _checkpoint(run, config))


def _run_of(checkpoint: Path) -> Run | None:
    """The run that a checkpoint's folder is part of."""
    run = Run(checkpoint.absolute().parents[1]) if len(checkpoint.absolute().parents) > 1 else None
    inside = run is not None and run.config.is_file() and checkpoint.absolute() in run.whole_checkpoints().values()
    return run if inside else None


def _of_model(folder: Path | None, overrides: Sequence[str]) -> Request:
    told = any(text.startswith(("vllm=", "vllm.mode=")) for text in overrides)
    chosen = [] if folder is None else ["model=path", f"model.path={_quoted(str(folder.absolute()))}"]
    config = _compose("config", [*chosen, *overrides])
    if not told:
        config.vllm.mode = AUTO
    if config.evaluate.checkpoint not in ("last", "before"):
        raise RequestError(f"evaluate.checkpoint={config.evaluate.checkpoint}: only a run has checkpoints")
    run = Run(Path(config.runs_dir) / (config.name or config.model.name))
    return Request(run, config, Policy("model", checkpoint.location(config.model)))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _composed_on(run: Run, overrides: Sequence[str]) -> Config:
    """The run's saved config under overrides; each of its groups is an option called `saved` of that group, so that
    another option replaces it."""
    saved = configuration.load(run.config)
    saved.vllm.mode, saved.vllm.dp = AUTO, 1  # how the run generated binds no evaluation of it
    saved.vllm.env = {key: value for key, value in saved.vllm.env.items() if value != REDACTED}
    content, known = dataclasses.asdict(saved), ConfigStore.instance()
    for group in GROUPS:
        known.store(group=group, name="saved", node=content.pop(group))
    choices = [{group: ["saved"] if group == "rewards" else "saved"} for group in GROUPS]
    known.store(name="evaluation", node={"defaults": ["schema", "_self_", *choices], **content})
    config = _compose("evaluation", overrides)
    if (config.model.path, config.model.weights) != (saved.model.path, saved.model.weights):
        raise RequestError(
            f"model.path={config.model.path}: {run.folder} has a policy of its own, trained from {saved.model.path};"
            " without the run's folder, model= is evaluated"
        )
    return config


def _compose(name: str, overrides: Sequence[str]) -> Config:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="evaluate"):
        return configuration.from_hydra(compose(name, list(overrides)))


def _checkpoint(run: Run, config: Config) -> Policy:
    base, wanted = checkpoint.location(config.model), config.evaluate.checkpoint
    if wanted == "before":
        return Policy("before", base)
    found = run.whole_checkpoints()
    step = max(found, default=None) if wanted == "last" else wanted
    if step not in found:
        have = f"it has {', '.join(map(str, sorted(found)))}" if found else "it has none"
        raise RequestError(
            f"{run.folder}: no checkpoint{'' if step is None else f' of step {step}'}, {have};"
            " evaluate.checkpoint=before is the untrained model"
        )
    folder = str(found[step].resolve())
    if (found[step] / "adapter_config.json").is_file():
        return Policy(f"step {step}", base, adapter=folder)
    return Policy(f"step {step}", folder)
