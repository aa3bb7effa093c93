"""vLLM in the measuring processes, laid out as TRL's trainer lays out a colocated one: `tp` processes share an engine,
and every engine has its share of the requests."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from trl.trainer.utils import ensure_master_addr_port

from grpo_lab.config.schema import Config
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.loads import Load, Request
from grpo_lab.server.counters import Counts, counts_of
from grpo_lab.store.rounds import Arrivals, BenchFailed, Measured
from grpo_lab.worker.bench.client import NEUTRAL
from grpo_lab.worker.patches.vllm import SEED_STRIDE


@dataclass
class Share:
    """What one engine did of a round."""

    tokens: int = 0
    counts: Counts | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)


class Engines:
    """Generator (grpo_lab.store.rounds) whose `measure` every process calls together."""

    def __init__(self, config: Config, plan: BenchPlan) -> None:
        from vllm import LLM

        self.state = PartialState(cpu=not plan.trainer_gpus)
        self.tells = self.state.is_main_process
        self.tp, self.dp = plan.tp, plan.dp
        self.number = self.state.process_index // self.tp
        # vLLM reads its place among the processes from the environment, as TRL leaves it there.
        os.environ |= {"RANK": str(self.state.process_index), "WORLD_SIZE": str(self.state.num_processes)}
        os.environ |= {"LOCAL_RANK": str(self.state.local_process_index)}
        ensure_master_addr_port()
        seed = config.seed * SEED_STRIDE + self.number
        self.llm = LLM(model=plan.model_path, seed=seed, **plan.engine)
        self.engine = self.llm.llm_engine
        rooms = gather_object([self._counts().kv_cache_tokens])
        self.kv_cache_tokens = sum(rooms[:: self.tp]) or None

    def measure(self, requests: Sequence[Request], load: Load) -> Measured:
        self.llm.reset_prefix_cache()
        in_flight = load.in_flight // self.dp + (self.number < load.in_flight % self.dp)
        self.state.wait_for_everyone()
        before, started = self._counts(), time.perf_counter()
        share = self._generate(requests[self.number :: self.dp], load.num_generations, in_flight)
        self.state.wait_for_everyone()
        seconds = time.perf_counter() - started
        share.counts = self._counts().since(before)
        return _together(gather_object([share])[:: self.tp], seconds)

    def _generate(self, requests: Sequence[Request], completions: int, in_flight: int) -> Share:
        """Processes that share an engine take the same steps: what is asked next depends on what came, not on when."""
        share, waiting = Share(), iter(requests)
        open_requests: dict[str, tuple[Request, float, dict[int, list[tuple[float, int]]]]] = {}
        number = 0
        while True:
            while len(open_requests) < in_flight and (request := next(waiting, None)) is not None:
                number += 1
                asked = time.perf_counter()
                self._ask(str(number), request, completions)
                open_requests[str(number)] = (request, asked, {})
            if not open_requests:
                return share
            for output in self.engine.step():
                now = time.perf_counter()
                request, asked, came = open_requests[output.request_id]
                for completion in output.outputs:
                    if completion.token_ids:
                        came.setdefault(completion.index, []).append((now, len(completion.token_ids)))
                if output.finished:
                    del open_requests[output.request_id]
                    _take(share, request, completions, asked, came)

    def _ask(self, name: str, request: Request, completions: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if request.timed else RequestOutputKind.FINAL_ONLY
        settings = SamplingParams(
            n=completions, max_tokens=request.length, ignore_eos=True, output_kind=kind, **NEUTRAL
        )
        self.engine.add_request(name, {"prompt_token_ids": list(request.prompt)}, settings)

    def _counts(self) -> Counts:
        labels_and_value = ((one.name, one.labels, getattr(one, "value", 0.0)) for one in self.llm.get_metrics())
        return counts_of(labels_and_value)


def _take(
    share: Share, request: Request, completions: int, asked: float, came: dict[int, list[tuple[float, int]]]
) -> None:
    lengths = [sum(count for _, count in parts) for parts in came.values()]
    if lengths != [request.length] * completions:
        raise BenchFailed(f"the engine made completions of {lengths} tokens, not {completions} of {request.length}")
    share.tokens += sum(lengths)
    if request.timed:
        for parts in came.values():
            share.arrivals.add(asked, parts)


def _together(shares: Sequence[Any], seconds: float) -> Measured:
    counts = [share.counts for share in shares]
    queried = sum(count.queried for count in counts)
    return Measured(
        seconds,
        sum(share.tokens for share in shares),
        {str(number): sum(count.generated.values()) for number, count in enumerate(counts)},
        Arrivals(
            [value for share in shares for value in share.arrivals.ttft_s],
            [value for share in shares for value in share.arrivals.itl_s],
        ),
        preemptions=sum(count.preemptions for count in counts),
        prefix_cache_hit_share=sum(count.hits for count in counts) / queried if queried else None,
    )


def generator(config: Config, plan: BenchPlan) -> Engines:
    return Engines(config, plan)
