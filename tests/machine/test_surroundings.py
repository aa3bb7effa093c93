"""Other people's launchers, users without a name, homes that cannot be written, working directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_lab.machine.processes import Child
from tests.conftest import ROOT
from tests.planner.test_plan import planned, with_gpus

SHOW = """
import json, os, sys
from grpo_lab.machine.gpus import read_machine
notes = read_machine(0).notes
print(json.dumps({"notes": notes, "path": sys.path[:2], "env": dict(os.environ)}))
"""


def started(
    tmp_path: Path, *, code: str = SHOW, drop: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """A process with this environment; without those of `drop`."""
    whole = {key: value for key, value in os.environ.items() if key not in drop} | {"PYTHONPATH": str(ROOT), **env}
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, env=whole, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)


def settled(tmp_path: Path, **options: object) -> tuple[dict[str, str], list[str]]:
    """The environment afterwards, and the notes."""
    answer = started(tmp_path, **options)  # type: ignore[arg-type]
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    return told["env"], told["notes"]


FOREIGN = dict.fromkeys(
    (
        *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
        *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_SIZE", "PMIX_RANK", "MV2_COMM_WORLD_RANK"),
        *("SLURM_PROCID", "SLURM_LOCALID", "PET_NNODES", "PET_NPROC_PER_NODE", "FSDP_VERSION"),
        *(
            "ACCELERATE_MIXED_PRECISION",
            "ACCELERATE_USE_FSDP",
            "ACCELERATE_DYNAMO_BACKEND",
            "PARALLELISM_CONFIG_TP_SIZE",
        ),
    ),
    "1",
)


def test_ranks_of_another_launcher_are_not_passed_on(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "MASTER": "yes", "PRANK": "1"}
    job["ACCELERATE_LOG_LEVEL"] = "info"
    env, notes = settled(tmp_path, **FOREIGN, **job)
    assert not FOREIGN.keys() & env.keys()
    assert job.items() <= env.items()
    assert notes == []


TORCHRUN = ["torch.distributed.run", "--nproc-per-node=1"]


@pytest.mark.parametrize(
    ("launcher", "module", "shown"),
    [
        (TORCHRUN, "train", "torchrun"),
        (TORCHRUN, "bench", "torchrun"),
        (TORCHRUN, "evaluate", "torchrun"),
        (["accelerate.commands.launch", "--cpu"], "train", "accelerate.commands.launch"),
    ],
)
def test_a_start_under_another_launcher_is_refused_by_name(launcher: list[str], module: str, shown: str) -> None:
    argv = [sys.executable, "-m", *launcher, "-m", f"grpo_lab.{module}", "dry_run=true"]
    answer = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert f"error: started by {shown}" in answer.stderr
    assert "exit status 2" in answer.stderr or "exitcode  : 2" in answer.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_a_user_that_no_file_knows_has_a_name(tmp_path: Path) -> None:
    code = """
import getpass, os
from grpo_lab.machine import surroundings
os.setuid(54321)
print(surroundings.settle()[0])
print(getpass.getuser(), os.environ["XDG_CACHE_HOME"])
os.rmdir(os.environ["XDG_CACHE_HOME"])
"""
    answer = started(tmp_path, code=code, drop=("USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"), HOME="/")
    note, names = answer.stdout.splitlines()
    assert note.startswith("/.cache cannot be written, so caches go to ")
    assert names.startswith("user54321 /")


def blocked(tmp_path: Path) -> Path:
    """A home that nobody can write, not even root: a file stands where its cache would be."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cache").write_text("")
    (home / ".cache").chmod(0o400)
    return home


def test_caches_go_where_they_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    env, notes = settled(
        tmp_path, drop=("XDG_CACHE_HOME", "MPLCONFIGDIR"), HOME=str(blocked(tmp_path)), TMPDIR=str(tmp_path / "tmp")
    )
    base = tmp_path / "tmp" / f"grpo-lab-cache-{os.getuid()}"
    assert env["XDG_CACHE_HOME"] == env["TRITON_HOME"] == str(base)
    assert base.stat().st_mode & 0o777 == 0o700
    (note,) = notes
    assert str(base) in note
    again, silent = settled(tmp_path, HOME=env["HOME"], XDG_CACHE_HOME=env["XDG_CACHE_HOME"])
    assert again["XDG_CACHE_HOME"] == str(base)
    assert silent == []


def test_a_cache_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    theirs = tmp_path / "tmp" / f"grpo-lab-cache-{os.getuid()}"
    theirs.mkdir(parents=True)
    theirs.chmod(0o777)
    env, _ = settled(tmp_path, drop=("XDG_CACHE_HOME",), HOME=str(blocked(tmp_path)), TMPDIR=str(tmp_path / "tmp"))
    assert Path(env["XDG_CACHE_HOME"]) != theirs
    assert Path(env["XDG_CACHE_HOME"]).is_dir()


def test_the_working_directory_is_on_the_path_of_children(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('here')\n")
    code = f"{SHOW}\nimport subprocess; subprocess.run([sys.executable, '-m', 'mine'], check=True)"
    argv = [sys.executable, "-P", "-c", code]
    whole = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    answer = subprocess.run(argv, env=whole, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert answer.stdout.splitlines()[-1:] == ["here"], answer.stderr


def test_no_proxy_is_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.2,.intern")
    monkeypatch.setenv("no_proxy", "judge")
    code = "import os; print(os.environ['NO_PROXY'], os.environ['no_proxy'])"
    direct = {"NO_PROXY": "127.0.0.1,judge", "no_proxy": "127.0.0.1,judge"}
    with Child([sys.executable, "-c", code], env=direct, log=tmp_path / "log") as child:
        child.wait(30)
    upper, lower = (tmp_path / "log").read_text().split()
    assert upper == lower
    assert set(upper.split(",")) == {"127.0.0.1", "127.0.0.2", ".intern", "judge"}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_nobodys(closed: str, tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m grpo_lab.train runs_dir={tmp_path}/runs dry_run=true {closed}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "0", "PYTHONOPTIMIZE": "2"}
    answer = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert ("grpo_lab.worker" in answer.stdout) == (">&-" not in closed.split())


USERS = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 3}
dynamo_config: {dynamo_backend: INDUCTOR}
mixed_precision: fp16
gpu_ids: "2,3"
machine_rank: 1
num_machines: 2
num_processes: 16
use_cpu: false
debug: true
"""
READ = """
import json, sys
from accelerate.commands import launch
args = launch._validate_launch_command(launch.launch_command_parser().parse_args(sys.argv[1:]))[0]
names = ("gpu_ids", "mixed_precision", "dynamo_backend", "machine_rank", "num_machines", "num_processes", "debug")
print(json.dumps([getattr(args, name) for name in names]))
"""


def test_the_users_accelerate_config_reaches_no_rank(tmp_path: Path) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(USERS)
    (trainer,) = planned(with_gpus(2), "model=qwen2.5-7b").trainer
    argv = trainer.argv[trainer.argv.index("accelerate.commands.launch") + 1 :]
    env = {**os.environ, "HF_HOME": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-c", READ, *argv], env=env, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == ["all", "no", "no", 0, 1, 2, False]
