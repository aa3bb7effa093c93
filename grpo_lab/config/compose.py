"""Makes a :class:`Config` of YAML and overrides: registers the schema with Hydra, reads, writes and hashes configs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from grpo_lab.config.naming import sweep_name
from grpo_lab.config.redaction import redact
from grpo_lab.config.resolvers import pick, quotient
from grpo_lab.config.schema import Config
from grpo_lab.config.suited import settle_numbers, settle_prompt

NOT_IDENTITY = (
    "runs_dir",
    "name",
    "hosts",
    "resume",
    "dry_run",
    "tracker",
    "timeouts",
    "launcher",
    "sweep",
    "objective",
    "evaluate",
    "bench",
    "kind",
    "fit",
    "hardware",
    "layout",
    "plan",
    "publish",
    "rehearse",
    "passes",
    "stop_on_nan",  # it decides how far a run comes, not what its steps compute
)
"""Keys that change no result."""
_BENCH_IDENTITY = ("kind", "model", "vllm", "bench", "seed", "gpus")
"""All that can change what a bench measures."""
_LATER: dict[str, Any] = {"simplified": True, "relative_tolerance": 0.0, "step_timeout_s": 120.0}
"""Parameters of rewards that are younger than runs that are to be found again, with the defaults that do not count."""
_SPEED_ONLY = (("vllm", "fast_output"),)
"""Keys of groups that change how long a run takes and nothing else."""
_OPENED: dict[tuple[str, str], tuple[Any, Any]] = {("distributed", "kind"): ("auto", "ddp")}
"""Keys that are chosen for the machine where they are left open: the open value, and the default that counts for it, so
that a run is the same on every machine."""
_OPEN = ("grpo", "data", "rewards", "vllm.engine", "vllm.env", "peft.options", "bench.loads")


def register(defaults: Config | None = None) -> None:
    """Put the schema into Hydra's store, with the defaults of the command that is run. Nodes that pass options on stay
    open, so they need no `+`."""
    schema = OmegaConf.structured(defaults or Config)
    for key in _OPEN:
        OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    ConfigStore.instance().store(name="schema", node=schema, provider="grpo_lab")

    prefix = f"{defaults.kind}-" if defaults else ""

    def name_of_sweep(name: str | None, overrides: list[str], axes: list[str] | None = None) -> str:
        return name or prefix + sweep_name(name, overrides, axes)

    OmegaConf.register_new_resolver("sweep_name", name_of_sweep, replace=True)
    OmegaConf.register_new_resolver("quotient", quotient, replace=True)
    OmegaConf.register_new_resolver("pick", pick, replace=True)
    OmegaConf.register_new_resolver("last_part", lambda path: Path(path or "").absolute().name, replace=True)


def from_hydra(composed: DictConfig) -> Config:
    """The composed configuration, resolved, as a :class:`Config`; settings `auto` have their values."""
    config = OmegaConf.to_object(settle_numbers(composed))
    assert isinstance(config, Config)
    settle_prompt(config)
    return config


def to_yaml(config: Config) -> str:
    """The content of config.yaml. Secrets stay out; a run gets them through the environment."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(redact(asdict(config)))))


def _literal(value: Any) -> Any:
    """The same, with what looks like an interpolation escaped: all of them are resolved by now."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def load(path: Path) -> Config:
    """Read what :func:`to_yaml` made."""
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    assert isinstance(merged, DictConfig)
    return from_hydra(merged)


def identity(config: Config) -> str:
    """Hash of all that can change a result: 12 hex digits. Folders, trackers and time limits are left out, and of a
    bench what only training uses."""
    everything = redact(asdict(config))
    for room, key in _SPEED_ONLY:
        del everything[room][key]
    for reward in filter(None, everything["rewards"].values()):
        for key in [key for key, default in _LATER.items() if reward.get(key, ...) == default]:
            del reward[key]
    for (room, key), (opened, before) in _OPENED.items():
        if everything[room].get(key, ...) == opened:
            everything[room][key] = before
    keys = _BENCH_IDENTITY if config.kind == "bench" else everything.keys() - NOT_IDENTITY
    asked = {key: everything[key] for key in keys}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]
