"""The modes of generation (`vllm.mode`): one class each, with all that depends on who generates.

Other modules ask the mode and never compare its name (tests/planner/test_modes.py holds that).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.schema import Config
from grpo_lab.machine.nodes import Host
from grpo_lab.planner.parts import Ports, Roles
from grpo_lab.server.command import QUIET, cpu_env


class Mode:
    """The attributes' defaults are those of vLLM engines in a process of the run."""

    name: str
    engines = True
    """Whether vLLM generates, in `vllm.dp` engines of `vllm.tp` GPUs; otherwise transformers does, in the trainer."""
    colocated = False
    """Whether the engines live in the trainer's processes: tp * dp of them, one GPU each."""
    served = False
    """Whether the engines are a server's, on GPUs of their own."""
    memory_share: float
    """`vllm.gpu_memory_utilization` where it is null."""
    bench: str
    """Module of worker/bench that measures; its `generator(config, plan)` gives the Generator."""
    bench_role = "engines"
    """What the bench's measuring command is called."""

    def check(self, config: Config) -> None:
        """Raises RequestError for keys of `vllm` that mean nothing in this mode."""
        if config.vllm.url is not None and not self.served:
            raise RequestError(f"vllm.url={config.vllm.url}: needs vllm={SERVER.name}")

    def beside(self, tp: int, dp: int) -> int:
        """GPUs that only generate."""
        return tp * dp if self.served else 0

    def generating(self, processes: int, tp: int, dp: int) -> int:
        """GPUs that generate beside or in so many processes of the trainer; on a machine without any, processes."""
        return self.beside(tp, dp) or processes

    def sharing(self, processes: int, dp: int) -> int:
        """Engines, or processes, that share the completions of a step."""
        return dp if self.engines else processes

    def trl_arguments(self, config: Config, url: str | None, ports: Ports) -> dict[str, Any]:
        """Fields of TRL's config. `url`: of the server that the run starts."""
        return {"use_vllm": self.engines, **({"vllm_mode": self.name} if self.engines else {})}

    def trainer_env(self, config: Config, roles: Roles, host: Host, ports: Ports, cores: int) -> dict[str, str]:
        """Environment variables of the trainer's processes on a host."""
        return {}

    def layout(self, tp: int, dp: int) -> str:
        """The layout in words."""
        return f"{self.name} tp={tp} dp={dp}"

    def words(self, tp: int | None, dp: int | None) -> str:
        """The layout in a table whose other words do not speak of vLLM."""
        return f"{self.name} tp={tp} dp={dp}"

    def generator(self, tp: int, dp: int) -> str:
        """The generator in a model card."""
        return f"vLLM {self.name}, tp={tp} dp={dp}"

    def suffix(self, tp: int, dp: int) -> str:
        """The mode and its layout in the name of a run."""
        return f"{self.name}-tp{tp}dp{dp}"

    def where(self, tp: int, dp: int, server: str) -> str:
        """The generator of a training run, for its banner. `server`: where that runs."""
        raise NotImplementedError

    def bench_where(self, tp: int, dp: int, devices: int, place: str) -> str:
        """The generator of a bench, for its banner. `place`: the GPUs, or that the server runs already."""
        raise NotImplementedError


class Off(Mode):
    name = "off"
    engines = False
    memory_share = 0.0
    bench = "plain"

    def check(self, config: Config) -> None:
        if config.vllm.tp > 1 or config.vllm.dp > 1:
            layout = f"vllm.tp={config.vllm.tp} vllm.dp={config.vllm.dp}"
            raise RequestError(f"{layout} need vllm={COLOCATE.name} or vllm={SERVER.name}")

    def layout(self, tp: int, dp: int) -> str:
        return self.name

    def words(self, tp: int | None, dp: int | None) -> str:
        return f"vllm {self.name}"

    def generator(self, tp: int, dp: int) -> str:
        return "transformers"

    def suffix(self, tp: int, dp: int) -> str:
        return self.name

    def where(self, tp: int, dp: int, server: str) -> str:
        return "transformers, in the trainer"

    def bench_where(self, tp: int, dp: int, devices: int, place: str) -> str:
        return f"transformers, {place}"


class Colocate(Mode):
    name = "colocate"
    colocated = True
    memory_share = 0.3
    bench = "colocated"

    def trl_arguments(self, config: Config, url: str | None, ports: Ports) -> dict[str, Any]:
        vllm = config.vllm
        return {
            **super().trl_arguments(config, url, ports),
            "vllm_tensor_parallel_size": vllm.tp,
            "vllm_gpu_memory_utilization": memory_share(config),
            "vllm_max_model_length": vllm.max_model_len,
            "vllm_enable_sleep_mode": vllm.sleep,
        }

    def trainer_env(self, config: Config, roles: Roles, host: Host, ports: Ports, cores: int) -> dict[str, str]:
        # Left alone, TRL 1.16 looks for a free one, 29500 first: two runs that start together find the same.
        port = {"MASTER_PORT": str(ports.rendezvous)} if roles.processes == 1 else {}
        processes = roles.processes // len(roles.trainer)
        on_cpu = {} if roles.trainer_gpus else cpu_env(processes, cores=cores, engine=config.vllm.engine)
        return {**QUIET, **port, **on_cpu}

    def where(self, tp: int, dp: int, server: str) -> str:
        return f"vLLM in the trainer's processes, tp={tp} dp={dp}"

    def bench_where(self, tp: int, dp: int, devices: int, place: str) -> str:
        return f"vLLM in {devices} process{'es' if devices > 1 else ''}, tp={tp} dp={dp}, {place}"


class Server(Mode):
    name = "server"
    served = True
    memory_share = 0.9
    bench = "client"
    bench_role = "client"

    def check(self, config: Config) -> None:
        if config.vllm.sleep:
            raise RequestError(f"vllm.sleep=true: a server has its GPUs for itself; sleep is for vllm={COLOCATE.name}")

    def trl_arguments(self, config: Config, url: str | None, ports: Ports) -> dict[str, Any]:
        return {
            **super().trl_arguments(config, url, ports),
            "vllm_server_base_url": url or config.vllm.url,
            "vllm_server_timeout": 30.0,
            "vllm_group_port": ports.weights,
        }

    def trainer_env(self, config: Config, roles: Roles, host: Host, ports: Ports, cores: int) -> dict[str, str]:
        # TRL's HTTP session would take a proxy to the server, and its NCCL group the first address of the host.
        theirs = urlsplit(config.vllm.url).hostname if config.vllm.url else None
        hosts = ["127.0.0.1", "localhost", *(server.address for server in roles.server), *([theirs] if theirs else ())]
        direct = ",".join(dict.fromkeys(hosts))
        own_address = {"VLLM_HOST_IP": host.address} if roles.server else {}
        return {"NO_PROXY": direct, "no_proxy": direct, **own_address}

    def where(self, tp: int, dp: int, server: str) -> str:
        return f"vLLM server, tp={tp} dp={dp}, {server}"

    def bench_where(self, tp: int, dp: int, devices: int, place: str) -> str:
        return f"vLLM server, tp={tp} dp={dp}, {place}"


OFF, COLOCATE, SERVER = Off(), Colocate(), Server()
MODES: dict[str, Mode] = {mode.name: mode for mode in (OFF, COLOCATE, SERVER)}
"""Each mode under its name, in the order in which they are named to the user."""


def mode(name: str) -> Mode:
    """Raises RequestError for an unknown name."""
    if name not in MODES:
        raise RequestError(f"vllm.mode={name}: {nearest(name, MODES)}")
    return MODES[name]


def memory_share(config: Config) -> float:
    """vLLM's share of each of its GPUs."""
    asked = config.vllm.gpu_memory_utilization
    return mode(config.vllm.mode).memory_share if asked is None else asked
