"""The environment that a command was started in, set right for it and for all that it starts.

Left alone, another launcher's ranks make torch wait for processes that never come, a user without a name ends vLLM and
torch in getpass, and a home that cannot be written ends data sets, Triton and vLLM.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from grpo_lab.config.errors import RequestError

RANKS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|ROLE_NAME"
    r"|(OMPI_COMM|MV2_COMM)_WORLD_\w+|(PMI|PMIX|PALS)_\w+|MPI_LOCAL\w+|SLURM_(PROCID|LOCALID|NODEID)|CROSS_(RANK|SIZE)"
)
"""Variables by which launchers (torchrun, mpirun, srun, Kubeflow) tell a process its place among others."""
ORDERS = re.compile(r"ACCELERATE_(?!LOG_LEVEL)\w+|(FSDP|MEGATRON_LM|PARALLELISM_CONFIG|PET|FP8)_\w+")
"""Variables by which `accelerate launch` says how to train, and Kubeflow (PET_*) how torchrun is to start."""
BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
LAUNCHERS = ("accelerate", "accelerate-launch", "deepspeed", "torchrun")
LAUNCHING = (
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
    "torch.distributed.run",
    "deepspeed.launcher.launch",
)
"""Launchers as commands, and as modules of `python -m`."""


def settle() -> tuple[str, ...]:
    """Set the environment of this process right, once; notes on what the user should know.

    Raises:
        RequestError: if torchrun or accelerate started this process.
    """
    launcher = "torchrun (or accelerate launch)" if BY_TORCHRUN in os.environ else _launched_by()
    if launcher:
        raise RequestError(
            f"started by {launcher}, which makes several of one command; start it once, plainly: it starts them itself,"
            " and trainer_gpus= says how many processes train"
        )
    for name in list(os.environ):
        if RANKS.fullmatch(name) or ORDERS.fullmatch(name):
            del os.environ[name]
    os.environ.pop("PYTHONOPTIMIZE", None)  # 2 takes away the docstrings of which transformers makes others
    _name_user()
    _find_modules_here()
    return _write_caches()


def _launched_by() -> str | None:
    """The launcher that is this process's parent: one of a single process leaves no sign but orders to the trainer."""
    try:
        words = psutil.Process(os.getppid()).cmdline()[:4]
    except psutil.Error:
        return None
    named = [Path(word).name for word in words if Path(word).name in LAUNCHERS or word in LAUNCHING]
    return named[0] if named else None


def _name_user() -> None:
    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        os.environ["USER"] = os.environ["LOGNAME"] = f"user{os.getuid()}"


def _find_modules_here() -> None:
    """The working directory is on the Python path, as with `python -m`, also for console scripts and PYTHONSAFEPATH."""
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        sys.path.insert(0, here)
    if os.environ.get("PYTHONSAFEPATH"):
        known = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = (
            known if here in known.split(os.pathsep) else f"{here}{os.pathsep}{known}".rstrip(":")
        )


def _write_caches() -> tuple[str, ...]:
    home = Path(os.path.expanduser("~"))
    usual = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    if usual.is_absolute() and _writable(usual):
        return ()
    base = _own_folder()
    for name, value in _elsewhere(usual, base).items():
        os.environ.setdefault(name, str(value))
    os.environ["XDG_CACHE_HOME"] = str(base)
    if not home.is_absolute():
        os.environ["HOME"] = str(base)
    return (f"{usual} cannot be written, so caches go to {base}; XDG_CACHE_HOME= sets another folder",)


def _elsewhere(usual: Path, base: Path) -> Mapping[str, Path]:
    """Variables of libraries that do not follow XDG_CACHE_HOME, and of what can still be read where it is."""
    hub = usual / "huggingface"
    kept = {"HF_HUB_CACHE": hub / "hub", "HF_TOKEN_PATH": hub / "token"}
    return {
        "TRITON_HOME": base,
        "FLASHINFER_WORKSPACE_BASE": base,
        "VLLM_CONFIG_ROOT": base / "vllm-config",
        "MPLCONFIGDIR": base / "matplotlib",
        "WANDB_DATA_DIR": base / "wandb-data",
        **{name: path for name, path in kept.items() if path.exists()},
    }


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest above it that is there, can be written."""
    return os.access(next(place for place in (folder, *folder.parents) if place.exists()), os.W_OK | os.X_OK)


def _own_folder() -> Path:
    """In the temporary folder, and nobody else's."""
    folder = Path(tempfile.gettempdir(), f"grpo-lab-cache-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="grpo-lab-cache-"))
    return folder
