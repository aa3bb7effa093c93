"""Notes on a run over several machines, for what a user may not expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo_lab.machine.nodes import Host
from grpo_lab.planner.parts import Roles
from grpo_lab.server.command import ServerPlan
from grpo_lab.server.key import GATE


def notes(roles: Roles, server: ServerPlan | None, *, room: int, unused: Sequence[Host]) -> Iterator[str]:
    """`room`: GPUs that the run may use on each machine; `unused`: machines of the job that it does not need."""
    for role, hosts, gpus in (
        ("server", roles.server, roles.server_gpus),
        ("trainer", roles.trainer, roles.trainer_gpus),
    ):
        if hosts:
            idle = room - len(gpus)
            left_over = f", {idle} of {room} GPUs stay idle on {'each' if len(hosts) > 1 else 'it'}" if idle else ""
            yield f"{role} on {_names(hosts)}{left_over}"
    if unused:
        yield f"{_names(unused)} stay idle"
    if server is not None and not roles.server[0].address.startswith("127."):
        behind = "behind a key that is sent unencrypted" if GATE in server.argv else "open to the whole network"
        yield f"the server listens on {server.url}, its administrative endpoints {behind}"


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)
