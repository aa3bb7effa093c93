"""GPUs and machines for each role, and the batch that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.machine.nodes import LOCAL, Host, placeholders
from grpo_lab.planner.modes import mode
from grpo_lab.planner.parts import Batch, Roles


def allowed_gpus(config: Config, machine: Machine) -> tuple[str, ...]:
    """Ids of the GPUs that the run may use, on each of its hosts."""
    have = tuple(gpu.id for gpu in machine.gpus)
    if config.gpus == "auto":
        return have
    if isinstance(config.gpus, int) and not isinstance(config.gpus, bool):
        if not 0 <= config.gpus <= len(have):
            raise RequestError(f"gpus={config.gpus}: this machine has {len(have)} GPUs")
        return have[: config.gpus]
    if isinstance(config.gpus, list):
        ids = tuple(_full_id(str(item), machine) for item in config.gpus)
        if config.nodes > 1:
            raise RequestError(f"gpus={list(ids)}: with nodes={config.nodes} Slurm assigns the ids; give a number")
        missing = [item for item in ids if item not in have]
        if missing or len(set(ids)) < len(ids):
            raise RequestError(
                f"gpus={list(ids)}: this machine has {', '.join(have) or 'no GPUs'}, each to be named once"
            )
        return ids
    raise RequestError(f"gpus={config.gpus}: 'auto', a number, or a list of ids such as [0,1]")


def _full_id(asked: str, machine: Machine) -> str:
    """The id of a visible GPU of which the UUID, or the beginning of it, was given; otherwise what was given."""
    fitting = [gpu.id for gpu in machine.gpus if asked[:4] in ("GPU-", "MIG-") and gpu.uuid.startswith(asked)]
    return fitting[0] if len(fitting) == 1 else asked


def one_slice_each(ids: tuple[str, ...]) -> tuple[str, ...]:
    """The same ids. Raises RequestError for several MIG devices: CUDA shows a process the first of them alone."""
    if len(ids) > 1 and any(id.startswith("MIG-") for id in ids):
        raise RequestError(
            f"{len(ids)} MIG devices for one part of the run, and CUDA shows a process only one; gpus=1, or gpus=[ID]"
        )
    return ids


def hosts_of(config: Config, machine: Machine) -> tuple[Host, ...]:
    """The hosts that the run spans, the conductor's first; placeholders where they are not known yet."""
    if config.nodes == 1:
        if config.hosts:
            raise RequestError(f"hosts={config.hosts}: nodes=1 takes this machine alone; nodes={len(config.hosts)}")
        return (LOCAL,)
    hosts = machine.hosts or placeholders(config.nodes)
    if len(hosts) < config.nodes:
        names = ", ".join(host.name for host in hosts)
        raise RequestError(f"nodes={config.nodes}: the job has {len(hosts)} ({names})")
    return hosts[: config.nodes]


def roles(config: Config, gpus: tuple[str, ...], hosts: tuple[Host, ...], *, cores: int) -> Roles:
    if mode(config.vllm.mode).colocated and config.trainer_gpus not in (None, config.vllm.tp * config.vllm.dp):
        raise RequestError(
            f"trainer_gpus={config.trainer_gpus}: colocate has tp * dp = {config.vllm.tp * config.vllm.dp} processes,"
            " one GPU each; change vllm.tp or vllm.dp"
        )
    if len(hosts) > 1:
        return _on_several(config, gpus, hosts, cores)
    layout = _on_one(config, gpus, hosts[0])
    one_slice_each(layout.trainer_gpus)
    one_slice_each(layout.server_gpus)
    return layout


def _on_one(config: Config, gpus: tuple[str, ...], host: Host) -> Roles:
    """Trainer and server share the host's GPUs."""
    vllm, wanted = config.vllm, config.trainer_gpus
    engines = vllm.tp * vllm.dp
    ours = mode(vllm.mode).served and vllm.url is None
    if mode(vllm.mode).colocated:
        if gpus and engines > len(gpus):
            raise RequestError(f"vllm.tp={vllm.tp} x vllm.dp={vllm.dp} need {engines} GPUs, there are {len(gpus)}")
        return Roles(engines, (host,), gpus[:engines])
    if not gpus:
        return Roles(wanted or 1, (host,), (), (host,) if ours else ())
    left = len(gpus) - (engines if ours else 0)
    if left < 1 or (wanted or 1) > left:
        if not ours:
            raise RequestError(f"trainer_gpus={wanted}: there are {len(gpus)} GPUs")
        need = f"{engines} for the server (tp x dp), {wanted or 'at least 1'} for the trainer"
        have = f"there are {len(gpus)} GPUs, and the two must not share one"
        raise RequestError(f"{need}: {have}; vllm=colocate needs none of its own")
    trainer = gpus[: wanted or left]
    server = gpus[len(trainer) : len(trainer) + engines] if ours else ()
    return Roles(len(trainer), (host,), trainer, (host,) if ours else (), server)


def _on_several(config: Config, gpus: tuple[str, ...], hosts: tuple[Host, ...], cores: int) -> Roles:
    """The server has the first hosts for itself, the trainer all others; a tensor-parallel group stays on one host."""
    vllm = config.vllm
    room, of = (len(gpus), "GPUs") if gpus else (cores, "cores")
    if vllm.tp > room:
        raise RequestError(f"vllm.tp={vllm.tp}: an engine must fit on one machine, and each has {room} {of}")
    if mode(vllm.mode).colocated:
        each = vllm.tp * _share("vllm.dp", vllm.dp, len(hosts))
        if each > room:
            need = f"need {each} {of} on each of {len(hosts)} machines, which have {room}"
            raise RequestError(f"vllm.tp={vllm.tp} x vllm.dp={vllm.dp} {need}")
        return Roles(vllm.tp * vllm.dp, hosts, gpus[:each])
    ours = mode(vllm.mode).served and vllm.url is None
    spread = math.ceil(vllm.dp / (room // vllm.tp)) if ours else 0
    if spread >= len(hosts):
        need = f"vllm.tp={vllm.tp} vllm.dp={vllm.dp} take {spread} machines of {room} {of}, the trainer one more"
        raise RequestError(f"nodes={len(hosts)}: {need}; nodes={spread + 1}")
    serving = vllm.tp * _share("vllm.dp", vllm.dp, spread) if ours else 0
    processes, each = _trainer_share(config, len(hosts) - spread, gpus)
    return Roles(processes, hosts[spread:], gpus[:each], hosts[:spread], gpus[:serving])


def _trainer_share(config: Config, hosts: int, gpus: tuple[str, ...]) -> tuple[int, int]:
    """Processes of a trainer that has the hosts for itself: in all, and on each host."""
    processes = config.trainer_gpus or hosts * max(1, len(gpus))
    each = _share("trainer_gpus", processes, hosts)
    if gpus and each > len(gpus):
        machines = f"{hosts} machines" if hosts > 1 else "one machine"
        raise RequestError(f"trainer_gpus={processes}: the trainer has {machines} of {len(gpus)} GPUs")
    return processes, each


def _share(key: str, total: int, hosts: int) -> int:
    """Share of each host. Raises RequestError where the shares would differ."""
    if total % hosts:
        nearby = " or ".join(str(size) for size in (total // hosts * hosts, (total // hosts + 1) * hosts) if size)
        raise RequestError(f"{key}={total} does not spread evenly over {hosts} machines; next ones: {nearby}")
    return total // hosts


def prompts_of(grpo: Mapping[str, Any]) -> int:
    """Prompts of one step, each with its completions: the trainer leaves out what is over and does not fill a step."""
    return int(grpo["generation_batch_size"]) // int(grpo["num_generations"])


def batch_of(grpo: Mapping[str, Any], processes: int, *, hosts: int = 1, together: int = 1) -> Batch:
    """Divide the completions of a step. `hosts`: machines of the trainer, over which its processes must spread evenly;
    `together`: completions that no pass may part."""
    completions, generations = int(grpo["generation_batch_size"]), int(grpo["num_generations"])
    limit = int(grpo["per_device_train_batch_size"])
    if limit < together:
        raise RequestError(f"grpo.per_device_train_batch_size={limit}: must be at least {together}")
    share = (f"{processes} processes{f' x {together}' if together > 1 else ''}", processes * together)
    for what, by in ((f"grpo.num_generations={generations}", generations), share):
        if completions % by:
            nearby = " or ".join(str(size) for size in (completions // by * by, (completions // by + 1) * by) if size)
            fewer = [count for count in range(hosts, processes + 1, hosts) if completions % (count * together) == 0]
            way_out = f", or trainer_gpus={fewer[-1]}" if by == share[1] and fewer else ""
            raise RequestError(
                f"grpo.generation_batch_size={completions} is not a multiple of {what}; next ones: {nearby}{way_out}"
            )
    each = completions // processes
    per_device = max(size for size in range(together, min(limit, each) + 1, together) if each % size == 0)
    return Batch(completions, prompts_of(grpo), generations, processes, per_device, each // per_device)
