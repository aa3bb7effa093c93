"""Offline W&B runs read back with W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def wandb_records(folder: Path, run_id: str) -> list[list[dict[str, Any]]]:
    """The records of every offline folder of this run, oldest first."""
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"), key=lambda path: path.stat().st_mtime_ns)
    records = []
    for file in files:
        argv = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        lines = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        records.append([json.loads(line) for line in lines])
    return records


def history(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return {item["_step"]: {key: item[key] for key in item if not key.startswith("_")} for item in items}
