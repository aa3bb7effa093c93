"""The machines of a run over several: their names and addresses, and how a command gets to one of them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config

SRUN = ("srun", "--nodes=1", "--ntasks=1", "--overlap", "--mem=0", "--cpu-bind=none", "--export=ALL")
"""A step on a machine of our own Slurm job that may use all that the job has there."""


@dataclass(frozen=True)
class Host:
    """One machine of a run."""

    name: str
    """As Slurm knows it."""
    address: str
    """By which the other machines of the run reach it, and to which its servers bind."""
    here: bool = False
    """The conductor's own machine, where commands start without Slurm."""

    def reach(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command as the conductor starts it for this machine."""
        return tuple(argv) if self.here else (*SRUN, f"--nodelist={self.name}", *argv)


LOCAL = Host("localhost", "127.0.0.1", here=True)
"""The only machine of a run on one: nothing of it is reachable from outside."""


def placeholders(count: int) -> tuple[Host, ...]:
    """For planning where no job, and so no machine, is there yet."""
    return tuple(Host(f"node{number}", f"node{number}", here=number == 0) for number in range(count))


def read_hosts(config: Config) -> tuple[Host, ...]:
    """The machines of a run over several, this one first; none for a run on one, or a dry run outside of a job.

    Raises:
        RequestError: if they are not known or cannot be reached, or this is not the first of them.
    """
    if config.nodes == 1:
        return ()
    names = config.hosts or _of_slurm_job()
    if config.dry_run:
        return tuple(Host(name, _resolved(name) or name, here=name == names[0]) for name in names)
    if not names:
        raise RequestError(
            f"nodes={config.nodes}: the machines are not known outside of a Slurm job; start this from a batch script"
            f" (sbatch --nodes={config.nodes}), or dry_run=true"
        )
    first, addresses = names[0], {name: _address(name) for name in names}
    if not _is_here(addresses[first]):
        here = socket.gethostname()
        raise RequestError(f"hosts: the first machine is {first}, so this must be started there, not on {here}")
    others = [name for name in names if name != first]
    if others and "SLURM_JOB_ID" not in os.environ:
        raise RequestError(f"hosts: {others[0]} is reached through srun, which needs a Slurm job; start this in one")
    addresses[first] = _address_towards(addresses[others[0]]) if others else addresses[first]
    return tuple(Host(name, addresses[name], here=name == first) for name in names)


def _of_slurm_job() -> list[str]:
    packed = os.environ.get("SLURM_JOB_NODELIST")
    if not packed:
        return []
    try:
        answer = subprocess.run(
            ["scontrol", "show", "hostnames", packed], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RequestError(
            f"scontrol does not expand SLURM_JOB_NODELIST={packed}: {error}; name the machines: hosts=[first,second]"
        ) from error
    return answer.stdout.split()


def _resolved(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _address(name: str) -> str:
    address = _resolved(name)
    if address is None:
        raise RequestError(f"hosts: the name {name} has no IPv4 address here; it must resolve on every machine")
    return address


def _is_here(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _address_towards(other: str) -> str:
    """Ours on the way there. A host's own name often stands for a loopback address, which no other machine reaches."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # of UDP: this chooses the interface and sends nothing
        address: str = probe.getsockname()[0]
    return address
