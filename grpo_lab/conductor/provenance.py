"""Where a run comes from, for env.json: the command, and the commit of the harness."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from grpo_lab.config.places import CONF
from grpo_lab.config.redaction import redact_command


def command(module: str) -> str:
    """The command line that was typed, without secrets; of a point of a sweep, the one that runs the point alone."""
    return redact_command(["python", "-m", module, *_arguments()])


def _arguments() -> list[str]:
    """What Hydra was told; a point of a sweep has other arguments."""
    overrides = HydraConfig.get().overrides if HydraConfig.initialized() else None
    if overrides is None:
        return sys.argv[1:]
    return [text for text in (*overrides.hydra, *overrides.task) if not text.startswith("hydra.mode=")]


def git_commit(root: Path = CONF.parent) -> str | None:
    """Commit of the harness where it runs from a clone, with `+changes` if the tree is not clean; None elsewhere, also
    where the harness is installed inside the repository of another project. `root`: the clone, with conf/ in it."""
    if shutil.which("git") is None or not _is_harness(root / "pyproject.toml"):
        return None
    commands = (("rev-parse", "--show-toplevel"), ("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
    answers = [
        subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        for arguments in commands
    ]
    top, commit, changes = (answer.stdout.strip() for answer in answers)
    if any(answer.returncode for answer in answers) or Path(top).resolve() != root.resolve():
        return None
    return commit + ("+changes" if changes else "")


def _is_harness(project: Path) -> bool:
    if not project.is_file():
        return False
    return bool(tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("name") == "grpo-lab")
