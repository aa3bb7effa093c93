"""Which checkpoints are whole: each carries a list of its files, with size and hash, that is written last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import xxhash

SEAL = "files.json"
_BLOCK = 2**22


def seal(folder: Path) -> None:
    """List what is in the folder; by rename, so that a list stands for a checkpoint that was written to its end."""
    files = {str(path.relative_to(folder)): (path.stat().st_size, _hash(path)) for path in _files(folder)}
    draft = folder / f".{SEAL}"
    draft.write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / SEAL)


def unseal(folder: Path) -> None:
    """Before the folder is written to once more."""
    (folder / SEAL).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    return (folder / SEAL).is_file()


def damage(folder: Path, *, contents: bool) -> str | None:
    """What is wrong with a sealed checkpoint, in words; None if it is whole. `contents`: read every byte, too."""
    try:
        files = dict(json.loads((folder / SEAL).read_text(encoding="utf-8")))
    except ValueError:
        return f"{SEAL} cannot be read"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
        if contents and _hash(path) != digest:
            return f"{name} has other contents than were written"
    return None


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in _files(folder))


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint to `damaged-<step>`, so that nothing takes it for one; nothing is deleted."""
    name = folder.name.replace("checkpoint", "damaged")
    target, number = folder.with_name(name), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{name}.{number}")
    return folder.rename(target)


def _files(folder: Path) -> list[Path]:
    ours = (SEAL, f".{SEAL}")
    return sorted(Path(where, name) for where, _, names in os.walk(folder) for name in names if name not in ours)


def _hash(path: Path) -> str:
    """XXH3, ten times as fast as what hashlib has: against a bad disk, not against an attacker."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()
