"""The few places where TRL 1.16's use of vLLM has to be told something that it has no option for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import set_seed
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from grpo_lab.config.schema import Config
from grpo_lab.planner.modes import mode
from grpo_lab.planner.train import Plan
from grpo_lab.server import gloo as weight_transfer
from grpo_lab.server.key import bearer

SEED_STRIDE = 1000
"""Between the seeds of two runs' generators: more than there are engines in one run."""


@contextmanager
def adapted(config: Config, plan: Plan) -> Iterator[None]:
    """In this block a trainer is built with vLLM's own options (colocate), or with the client of a run and the planned
    way of weights (server).

    TRL builds `vllm.LLM` with fixed arguments and meets the server through `VLLMClient`, with NCCL only. The names are
    replaced in TRL's module; tests/vllm/ fails when they are gone.
    """
    if plan.generation.colocated:
        weight_transfer.register()
        with _replaced("LLM", _engine(config, plan.engine, vllm_generation.LLM)):
            yield
    elif plan.generation.served:
        client = vllm_generation.VLLMClient
        if plan.weight_transfer == "gloo":
            client = weight_transfer.gloo_client(timeout_s=2 * config.timeouts.sync)  # the watchdog comes first
        with _replaced("VLLMClient", client_of_a_run(client)):
            yield
    else:
        yield


@contextmanager
def _replaced(name: str, value: Any) -> Iterator[None]:
    original = getattr(vllm_generation, name)
    setattr(vllm_generation, name, value)
    try:
        yield
    finally:
        setattr(vllm_generation, name, original)


def _engine(config: Config, options: dict[str, Any], build: Callable[..., Any]) -> Callable[..., Any]:
    from grpo_lab.worker.patches import fast_output  # it imports vLLM

    def engine(**arguments: Any) -> Any:
        seed = config.seed * SEED_STRIDE + arguments["seed"]  # TRL's is the number of the engine alone
        built = build(**{**arguments, "seed": seed, **options})
        if config.vllm.fast_output:
            fast_output.install(built, vllm_generation)
        return built

    return engine


def client_of_a_run(client: type[VLLMClient]) -> type[VLLMClient]:
    """TRL's client, or one made from it, that sends the server's key and takes none but whole completions.

    TRL 1.16 has no option for a key, and asks /v1/models in the constructor, right after `check_server`.
    """

    class Client(client):  # type: ignore[misc, valid-type]
        def check_server(self, *arguments: Any, **options: Any) -> None:
            self.session.headers.update(bearer())
            super().check_server(*arguments, **options)

        def _post(self, url: str, **request: Any) -> dict[str, Any]:
            return whole(super()._post(url, **request))

    return Client


class CutOff(ConnectionError):
    """The server gave up completions that it had begun."""


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer of the server, unless completions in it were cut off.

    vLLM 0.22 to 0.31 answers with status 200 and what there is, `finish_reason` abort, while its engine goes down, and
    TRL 1.16 does not look at it: the rests would be rewarded, trained on, and counted as wrong in an evaluation. The
    fault `/v1/completions halfabort` of tests/faults/test_servers.py tells what becomes of a run without this.
    """
    choices = answer.get("choices", [])
    broken = sum(choice.get("finish_reason") in ("abort", "error") for choice in choices)
    if broken:
        raise CutOff(f"the vLLM server cut off {broken} of {len(choices)} completions: its engine is going down")
    return answer


def seed(trainer: GRPOTrainer, config: Config) -> None:
    """Make all randomness of the run follow from its seed, here and now.

    A colocated vLLM samples from this process's generators, which TRL 1.16 leaves alike for every run; processes that
    share one engine must draw alike, all others differently. The server gets its seed on its command line.
    """
    sharing = config.vllm.tp if mode(config.vllm.mode).colocated else 1
    set_seed(config.seed * SEED_STRIDE + trainer.accelerator.process_index // sharing)
