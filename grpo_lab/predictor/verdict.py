"""Whether a layout fits, and the most that would."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from grpo_lab.machine.cards import Card
from grpo_lab.predictor import memory
from grpo_lab.predictor.parts import Layout, Need
from grpo_lab.predictor.workload import Workload, with_adapter

GIB = memory.GIB
MARGIN = 0.1
"""Of what is estimated: within it nobody knows, below it a layout fits, above it cannot."""
FITS, TIGHT, NO, REFUSED = "fits", "tight", "does not fit", "refused"


@dataclass(frozen=True)
class Verdict:
    kind: str
    """fits, tight (within the error of the prediction) or does not fit."""
    reason: str
    """Empty where it fits."""
    needs: Mapping[str, Need]


def judge(work: Workload, layout: Layout, card: Card, *, own_server: bool = True) -> Verdict:
    """`own_server`: false where somebody else's server generates (`vllm.url`), of which nothing is known."""
    needs = memory.fullest(work, layout, card)
    if not own_server:
        needs.pop("server", None)
    cache = [_cache(work, layout, card)] if layout.generation.engines and own_server else []
    causes = [*cache, *(_role(role, need, work, layout, card) for role, need in needs.items())]
    worst = max((kind for kind, _ in causes), key=(FITS, TIGHT, NO).index)
    return Verdict(worst, "; and ".join(reason for kind, reason in causes if kind == worst and reason), needs)


def _role(role: str, need: Need, work: Workload, layout: Layout, card: Card) -> tuple[str, str]:
    spread = MARGIN * (need.total - need.given)
    if need.total + spread <= card.memory:
        return FITS, ""
    reason = f"{role} out of memory: {need.total / GIB:.1f} GiB of {card.memory / GIB:.1f}"
    largest = max(need.parts, key=lambda part: need.parts[part])
    reason += f", most of it {largest} ({need.parts[largest] / GIB:.1f})"
    if need.total - spread > card.memory:
        return NO, reason + _way_out(role, work, layout, card)
    return TIGHT, f"perhaps {reason}"


def _way_out(role: str, work: Workload, layout: Layout, card: Card) -> str:
    if role == "server":
        return f"; lower {_sized_by(work)}"
    if smaller := largest_batch(work, layout, card):
        return f"; grpo.per_device_train_batch_size={smaller}"
    ways = [way for way, asked, place in _ways(work, layout) if largest_batch(asked, place, card)]
    return f"; {' or '.join(ways)}" if ways else "; a smaller model or more GPUs"


def _ways(work: Workload, layout: Layout) -> Iterator[tuple[str, Workload, Layout]]:
    """What else could be asked for that needs less memory."""
    if layout.generation.colocated and not work.sleep:
        yield "vllm.sleep=true", replace(work, sleep=True), layout
    if layout.trainer > 1:
        for kind in ("zero3", "fsdp2"):
            yield f"distributed={kind}", replace(work, offload=False), replace(layout, kind=kind)
        yield "distributed=zero3_offload", replace(work, offload=True), replace(layout, kind="zero3")
    if work.adapter == "none":
        yield "peft=lora", with_adapter(work), layout


def _cache(work: Workload, layout: Layout, card: Card) -> tuple[str, str]:
    """Room of one sequence in vLLM's KV cache, without which it does not start."""
    engine = memory.engine(work, layout, card)
    spread = MARGIN * (engine.weights + engine.profiled) if work.cache is None else 0.0
    sequence = memory.kv_bytes(work, layout.tp)
    if engine.pool - spread >= sequence * work.served_length:
        return FITS, ""
    share = f"vLLM's share of {engine.share / GIB:.1f} GiB"
    if engine.pool + spread <= 0:
        inside = f"its weights ({engine.weights / GIB:.1f}) and activations ({engine.profiled / GIB:.1f})"
        return NO, f"{share} does not hold {inside}; more vllm.tp or {_sized_by(work)}"
    tokens = math.floor(max(engine.pool, 0.0) / sequence)
    reason = f"not enough KV cache for one sequence of {work.served_length} tokens: {share} leaves room for {tokens}"
    if engine.pool + spread < sequence * work.served_length:
        ways = f"vllm.max_model_len={padded(work.length)}, " if work.length <= tokens < work.served_length else ""
        return NO, f"{reason}; {ways}more vllm.tp or {_sized_by(work)}"
    return TIGHT, f"perhaps {reason}"


def _sized_by(work: Workload) -> str:
    """The key that says how much memory vLLM takes."""
    return "vllm.gpu_memory_utilization" if work.cache is None else "vllm.engine.kv_cache_memory_bytes"


def padded(length: int) -> int:
    return 256 * math.ceil(length / 256)


def largest_batch(work: Workload, layout: Layout, card: Card) -> int:
    """The largest grpo.per_device_train_batch_size that surely fits; 0 if none does."""
    own = work.completions // layout.trainer

    def fits(size: int) -> bool:
        needs = memory.fullest(work, replace(layout, per_device=size), card)
        return all(need.total + MARGIN * (need.total - need.given) <= card.memory for need in needs.values())

    return _largest(fits, own)


def largest_completion(work: Workload, layout: Layout, card: Card) -> int:
    """The longest completion, in tokens, that surely fits with this batch and prompt; 0 if none does."""

    def fits(tokens: int) -> bool:
        longer = replace(work, completion=tokens, max_model_len=work.prompt + tokens)
        return judge(longer, layout, card).kind == FITS

    limit = work.shape.context or 1 << 20
    return _largest(fits, max(0, limit - work.prompt))


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """Of 0..limit, the largest that fits, if all below one that fits do as well."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
