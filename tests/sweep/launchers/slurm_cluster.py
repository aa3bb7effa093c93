"""A real Slurm on this machine for some tests: a controller, three nodes, and munge for their trust."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from grpo_lab.machine.processes import Child

NODES = ("n1", "n2", "n3")
DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"])

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {node} Feature=old
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {node} Feature=new
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} {node} Feature=old
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=1-00:00:00
PartitionName=grace Nodes=ALL PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE = "CPUs=4 CoresPerSocket=4 RealMemory=4000 Gres=gpu:nvidia_a100-sxm4:4"
GPUS = "".join(f"Name=gpu Type=nvidia_a100-sxm4 File=/dev/{file}\n" for file in ("null", "zero", "full", "random"))
"""Slurm wants device files, and does nothing with them unless it confines jobs by cgroup."""


class CannotStart(RuntimeError):
    """Why there can be no Slurm here."""


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Path]:
    """The cluster's slurm.conf. All that it started, jobs included, has ended afterwards. Raises CannotStart."""
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=PATH) is None]
    if missing:
        raise CannotStart(f"{', '.join(missing)} not found; apt-get install slurm-wlm munge")
    config = write_config(folder)
    with contextlib.ExitStack() as daemons:

        def start(*argv: str) -> None:
            program = shutil.which(argv[0], path=PATH)
            assert program is not None
            log = folder / f"{argv[0]}.log"
            env = {"SLURM_CONF": str(config)}
            daemons.enter_context(Child([program, *argv[1:]], env=env, log=log, grace_s=5.0))

        files = (f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed"))
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        await_true((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D", "-f", str(config))
        for node in NODES:
            start("slurmd", "-D", "-N", node, "-f", str(config))
        await_true(lambda: idle_nodes(config) == len(NODES), folder)
        yield config


def write_config(folder: Path, *, proctrack: str = "pgid") -> Path:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (key := folder / "munge.key").write_bytes(os.urandom(128))
    key.chmod(0o600)
    folder.chmod(0o755)  # munge insists that nobody else may write here
    (folder / "gres.conf").write_text(GPUS)
    host = socket.gethostname().partition(".")[0]
    facts = {
        "user": getpass.getuser(),
        "host": host,
        "ports": free_ports(1 + len(NODES)),
        "node": NODE,
        "proctrack": proctrack,
    }
    (config := folder / "slurm.conf").write_text(CONFIG.format(folder=folder, **facts))
    return config


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def idle_nodes(config: Path) -> int:
    argv = ["sinfo", "--noheader", "--partition=low", "--states=idle", "--format=%D"]
    answer = subprocess.run(argv, env={**os.environ, "SLURM_CONF": str(config)}, capture_output=True, text=True)
    return int(answer.stdout or 0) if answer.returncode == 0 else 0


def await_true(condition: object, folder: Path, timeout_s: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            said = [line for log in folder.glob("*.log") for line in log.read_text(errors="replace").splitlines()[-4:]]
            raise CannotStart("\n".join(["it does not come up:", *said]))
        time.sleep(0.1)
