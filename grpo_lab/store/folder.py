"""The run folder: every file name, every read and write of it. No heavy imports.

The conductor and the worker meet nowhere else. JSON files appear whole, by rename, or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo_lab.config import compose as configuration
from grpo_lab.config.redaction import redact
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import writing
from grpo_lab.store import checkpoints, records
from grpo_lab.store.files import Row as Row
from grpo_lab.store.files import read_json as read_json
from grpo_lab.store.files import read_new_rows as read_new_rows
from grpo_lab.store.files import write_json as write_json
from grpo_lab.store.files import write_text as write_text
from grpo_lab.store.records import Env, Outcome, Result

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
_SET_ASIDE = re.compile(r"\.old-\d+$")
_EVALUATIONS = "evaluations"
TRIALS = ".trials"
"""Folder of the trial runs of `layout=auto`. Reports skip them."""
STEPPING = ("training", "evaluating in between")
"""Phases of a worker between its first step and its last, where it can end after the step at hand."""


@dataclass(frozen=True)
class Run:
    """A run folder, existing or not."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def read_config(self) -> Row:
        """What was asked, as plain data; empty where the file is missing or damaged, as beside copied results."""
        try:
            asked = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return {}
        return asked if isinstance(asked, dict) else {}

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def env(self) -> Path:
        return self.folder / "env.json"

    @property
    def worker_log(self) -> Path:
        return self.folder / "worker.log"

    @property
    def server_log(self) -> Path:
        return self.folder / "server.log"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, one line a step."""
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """What the worker is doing: `{phase, done, total}`."""
        return self.folder / "progress.json"

    @property
    def outcome(self) -> Path:
        """What the worker leaves: startup, memory, and its failure if it could still say so."""
        return self.folder / "outcome.json"

    def read_outcome(self) -> Outcome:
        """What the worker has left so far."""
        return records.read(self.outcome, Outcome) or Outcome()

    def update_outcome(self, **changes: Any) -> None:
        records.write(self.outcome, dataclasses.replace(self.read_outcome(), **changes))

    @property
    def result(self) -> Path:
        """Written last, by the conductor: its presence means that the run has ended."""
        return self.folder / "result.json"

    @property
    def stop_request(self) -> Path:
        """Its presence asks the worker to save a checkpoint and end after the step at hand."""
        return self.folder / "stop"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def completions(self) -> Path:
        return self.folder / "completions.parquet"

    @property
    def step_completions(self) -> Path:
        """Where TRL writes the completions of each step, gathered into `completions` at the end."""
        return self.checkpoints / "completions"

    @property
    def reward_curve(self) -> Path:
        return self.folder / "reward_curve.png"

    @property
    def published(self) -> Path:
        """Where the policy went: `{repo_id, commit}` of the last time."""
        return self.folder / "published.json"

    def evaluation(self, moment: str) -> Path:
        """Held-out answers, 1 right and 0 wrong in the order of the problems; moment is `before` or `after`."""
        return self.folder / f"evaluation_{moment}.json"

    def answers(self, moment: str) -> Path:
        """What was answered then: `prompt`, `completion`, `right`."""
        return self.folder / f"evaluation_{moment}.parquet"

    @property
    def ballast(self) -> Path:
        """Room on the disk that is given up when there is none left, for the files that say so."""
        return self.folder / ".ballast"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}"

    def sealed_checkpoints(self) -> dict[int, Path]:
        """Step -> folder of every checkpoint that was written to its end, whatever has happened to it since."""
        return {
            int(match.group(1)): folder
            for folder in self.checkpoints.glob("checkpoint-*")
            if (match := _CHECKPOINT.match(folder.name)) and checkpoints.is_sealed(folder)
        }

    def whole_checkpoints(self) -> dict[int, Path]:
        """Step -> folder, as far as the sizes of its files tell."""
        sealed = self.sealed_checkpoints().items()
        return {step: folder for step, folder in sealed if checkpoints.damage(folder, contents=False) is None}

    def last_checkpoint(self) -> tuple[Path, int] | None:
        """The newest whole checkpoint and its step."""
        checkpoints = self.whole_checkpoints()
        return (checkpoints[max(checkpoints)], max(checkpoints)) if checkpoints else None

    def append_metrics(self, row: Row) -> None:
        line = json.dumps(row) + "\n"
        with writing(self.metrics, len(line)), self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(line)

    def rows(self) -> list[Row]:
        """The whole lines of metrics.jsonl; a torn last line, as a kill leaves it, is left out."""
        return read_new_rows(self.metrics, 0)[0]

    def rewind(self, step: int) -> None:
        """Drop what was recorded after `step`, so that a run that goes on from there has every step once."""
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_text(self.metrics, "".join(kept))
        for file in self.step_completions.glob("completions_*.parquet"):
            if int(file.stem.removeprefix("completions_")) > step:
                file.unlink()

    @property
    def lock(self) -> Path:
        """Held by the run's conductor and, when that dies, until nothing of its processes is left."""
        return self.folder / ".lock"

    def set_aside(self) -> Path:
        """Move the folder out of the way, to the first free `<name>.old-N`; nothing is deleted."""
        number = 1
        while (target := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        return self.folder.rename(target)


@dataclass(frozen=True)
class Evaluation:
    """The folder of one evaluation of a policy, below the folder of its run."""

    folder: Path

    @classmethod
    def of(cls, run: Run, name: str) -> Evaluation:
        return cls(run.folder / _EVALUATIONS / name)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def plan(self) -> Path:
        """What the answering process is to do."""
        return self.folder / "plan.json"

    @property
    def env(self) -> Path:
        return self.folder / "env.json"

    @property
    def log(self) -> Path:
        return self.folder / "answering.log"

    @property
    def progress(self) -> Path:
        """What the answering process is doing: `{phase, done, total}`, in problems."""
        return self.folder / "progress.json"

    @property
    def parts(self) -> Path:
        """Where each batch is saved, gathered into `records` at the end."""
        return self.folder / "parts"

    def part(self, batch: int) -> Path:
        return self.parts / f"part-{batch:06}.parquet"

    @property
    def records(self) -> Path:
        """One row a problem and sample; its presence means that every problem has been answered."""
        return self.folder / "records.parquet"

    @property
    def merged(self) -> Path:
        """The weights with their adapter in them, while vLLM uses them."""
        return self.folder / "merged"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def comparison(self) -> Path:
        """With the evaluation that was named before this one."""
        return self.folder / "comparison.json"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep: its points are run folders in it."""

    folder: Path

    @property
    def points(self) -> Path:
        """Every point with its overrides and resolved config, frozen before the first one starts."""
        return self.folder / "sweep.json"

    @property
    def lock(self) -> Path:
        """Held by the launcher that works on the sweep."""
        return self.folder / ".lock"

    def job(self, name: str) -> Path:
        """What a point's process is given: pickled."""
        return self.jobs / f"{name}.job"

    def returned(self, name: str) -> Path:
        """What a point's process gives back: pickled."""
        return self.jobs / f"{name}.return"

    def log(self, name: str) -> Path:
        """What a point's process printed."""
        return self.jobs / f"{name}.log"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    def run(self, name: str) -> Run:
        return Run(self.folder / name)


def save_config(config: Config, path: Path) -> None:
    """Write config.yaml. Secrets stay out; a run gets them through the environment."""
    write_text(path, configuration.to_yaml(config))


def save_plan(path: Path, plan: Any, **derived: Any) -> None:
    """Write plan.json. Secrets stay out. `derived`: what the plan computes, for who reads the file."""
    write_json(path, redact({**records.content_of(plan), **derived}))


def load(folder: Path) -> list[Row]:
    """Every run at or below a folder as one row: its result, its metrics at the same level, its `env`.

    Runs below that were set aside are left out, evaluations are no runs, and trials of layouts no results.
    """
    return [row(run) for run in runs(folder)]


def runs(folder: Path) -> list[Run]:
    """Every run at or below a folder that has ended; as for :func:`load`."""
    results = sorted(Path(folder).rglob("result.json"))
    return [Run(path.parent) for path in results if is_run(path.relative_to(folder))]


def is_run(path: Path) -> bool:
    """Whether a file, as seen from the folder that was asked for, is one of a run that counts."""
    return not {_EVALUATIONS, TRIALS} & set(path.parts) and not any(_SET_ASIDE.search(part) for part in path.parts)


def row(run: Run) -> Row:
    """The result of a run that has ended, its metrics at the same level, and its `env`. Raises as `records.build`."""
    result, env = read_json(run.result), read_json(run.env) or {}
    records.build(Result, result, run.result)  # refuses what it cannot know; defaults do not belong in a table
    records.build(Env, env, run.env)
    return {"run": str(run.folder), "env": env, **result.pop("metrics", {}), **result}
