"""Seconds of a step, phase by phase: rooflines (Williams et al. 2009) with few coefficients.

Every coefficient has a meaning and a range that a data sheet or the arithmetic gives; measurements fix its value
(:mod:`grpo_lab.predictor.calibration`). Time = what the arithmetic units or the memory need, whichever is more, plus
what the host needs between, plus communication; nothing is taken to overlap beyond that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from grpo_lab.machine.cards import Card
from grpo_lab.predictor import memory
from grpo_lab.predictor.parts import Layout, Phases
from grpo_lab.predictor.workload import Workload

HOST_BANDWIDTH = 25e9
"""Bytes a second between a GPU and the host's memory, for offloaded optimizers (PCIe 4.0 x16, one direction)."""


@dataclass(frozen=True)
class Coefficients:
    """The defaults are where calibration starts from, and stay where no measurement says otherwise."""

    bandwidth: float = 0.8
    """Share of the memory's bandwidth that decoding reaches."""
    decode_matrix: float = 0.35
    """Share of the dense rate in the thin matrix products of decoding."""
    matrix: float = 0.7
    """Share of the dense rate in the wide ones of prefill and training."""
    activation_passes: float = 150.0
    """Times that a layer's hidden states go through memory in one forward pass outside of matrix products."""
    step_s: float = 1e-3
    """Host time of one decoding step, vLLM in the trainer's process."""
    sequence_s: float = 2e-5
    """The same for each sequence in it: sampling, detokenizing, log-probabilities as Python objects."""
    server_step_s: float = 2e-3
    server_sequence_s: float = 1e-5
    server_logprob_s: float = 1.6e-5
    """The same of its log-probabilities, which training asks for (benchmarks/logprob_cost.py)."""
    allreduce_s: float = 1.2e-5
    """Latency of one all-reduce within a tensor-parallel group."""
    link: float = 0.7
    """Share of the link's rate in large transfers between GPUs (NCCL)."""
    sync_layer_s: float = 1.1e-3
    """Host time to hand the weights of one layer to vLLM."""
    transfer: float = 0.15
    """Share of the link's rate in packed weights to a server."""
    eager_layer_s: float = 6e-4
    """Host time of one layer in a forward pass of transformers, whose kernels start one by one."""
    adapter_s: float = 4.75e-4
    """The same of one matrix's adapter (peft); from the runs of experiments/vllm_vs_transformers."""
    other_s: float = 0.03
    other_completion_s: float = 3e-4
    """Host time of a step outside of all phases, and of one completion of a process in it."""

    def on_host(self, slow: float) -> Coefficients:
        """Of a host on which all that waits for it takes `slow` times as long."""
        return replace(self, **{name: getattr(self, name) * slow for name in HOST})


SHARES = ("bandwidth", "decode_matrix", "matrix", "link", "transfer")
"""The coefficients that cannot be more than 1."""
HOST = (
    *("step_s", "sequence_s", "server_step_s", "server_sequence_s", "server_logprob_s"),
    *("sync_layer_s", "eager_layer_s", "adapter_s", "other_s", "other_completion_s"),
)
"""Host times."""


def phases(work: Workload, layout: Layout, card: Card, known: Coefficients) -> Phases:
    """Of one step, with the slowest process counting; without a trainer only generation."""
    if layout.trainer == 0:
        return Phases(generation(work, layout, card, known), 0.0, 0.0, 0.0, 0.0)
    engines = layout.generation.engines
    generate = (generation if engines else own_generation)(work, layout, card, known)
    return Phases(
        generate=generate,
        sync=sync(work, layout, card, known) if engines else 0.0,
        logprobs=logprobs(work, layout, card, known),
        train=training(work, layout, card, known),
        other=known.other_s + known.other_completion_s * work.completions / layout.trainer,
    )


def generation(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """vLLM: prefill of the prompts, once for each engine that completes them, then decoding in waves of as many
    sequences as the KV cache and max_num_seqs hold (continuous batching: a wave need not be whole)."""
    own = work.completions / layout.dp
    room = max(1.0, memory.engine(work, layout, card).sequences)
    together = min(own, room, memory.most_sequences(work, layout, card))
    prompts = max(1.0, own / memory.sharing(work, layout)) * work.prompt
    prefill = prompts * token_flops(work, work.prompt) / (layout.tp * card.flops * known.matrix)
    return prefill + own / together * work.completion * decode_step(work, layout, card, known, together)


def token_flops(work: Workload, length: float) -> float:
    """Of a forward pass, for one of so many tokens: 2 FLOPs a parameter (Kaplan et al., arXiv:2001.08361, section 2.1)
    and attention's 4 x heads x head size a layer and pair of tokens, half of them masked."""
    return 2 * work.active + 2 * work.shape.layers * work.shape.heads * work.shape.head_dim * length


def decode_step(work: Workload, layout: Layout, card: Card, known: Coefficients, sequences: float) -> float:
    """One token for each of the sequences: weights once, the KV cache of all (Pope et al., arXiv:2211.05102, section
    2), two all-reduces a layer over tp GPUs (Megatron-LM, arXiv:1909.08053)."""
    tp, shape, bandwidth = layout.tp, work.shape, card.bandwidth * known.bandwidth
    product = 2 * work.active * sequences / (tp * card.flops * known.decode_matrix)
    linear = max(read_weights(work, sequences) / tp / bandwidth, product)
    cache = sequences * (work.prompt + work.completion / 2) * memory.kv_bytes(work, tp) / bandwidth
    served = layout.generation.served
    step_s, each_s = (known.server_step_s, known.server_sequence_s) if served else (known.step_s, known.sequence_s)
    each_s += known.server_logprob_s if served and layout.trainer else 0.0
    reduced = 2 * (tp - 1) / tp * sequences * shape.hidden * 2 / (card.link * known.link)
    reduce = 2 * shape.layers * (known.allreduce_s + reduced) if tp > 1 else 0.0
    return linear + cache + reduce + step_s + each_s * sequences


def read_weights(work: Workload, sequences: float) -> float:
    """Bytes of weights that one decoding step reads: not the input embedding; of the experts those that one of the
    sequences is sent to, if each goes anywhere with equal chance."""
    shape = work.shape
    embedding = 0 if shape.tied else shape.vocab * shape.hidden
    if not shape.experts:
        return 2.0 * (work.parameters - embedding)
    idle = math.pow(1 - shape.experts_per_token / shape.experts, sequences)
    experts = 3 * shape.layers * shape.experts * shape.hidden * shape.mlp
    return 2.0 * (work.parameters - embedding - experts * idle)


def own_generation(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """transformers: one kernel at a time, so that the host's time for a layer is what counts; sharded weights are
    gathered for every token."""
    own, bandwidth = work.completions / layout.trainer, card.bandwidth * known.bandwidth
    moved = memory.weights(work) + own * (work.prompt + work.completion / 2) * memory.kv_bytes(work)
    gathered = gather(work, layout, card, known) if layout.kind == "fsdp2" else 0.0
    return work.completion * (max(host(work, known), moved / bandwidth) + gathered)


def host(work: Workload, known: Coefficients) -> float:
    """What the host needs to start the kernels of one forward pass: all that counts for few tokens."""
    return work.shape.layers * (known.eager_layer_s + work.adapted * known.adapter_s)


def sync(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """Weights to vLLM: in place where it is colocated, otherwise packed over the link, by rank 0 alone."""
    seconds = work.shape.layers * known.sync_layer_s
    if layout.kind in ("fsdp2", "zero3"):
        seconds += gather(work, layout, card, known)
    if layout.generation.colocated:
        return seconds + 2 * memory.weights(work) / (card.bandwidth * known.bandwidth)
    rate = card.link if layout.nodes == 1 else card.network
    return seconds + memory.weights(work, work.held_bytes) / (rate * known.transfer)


def forward(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """All completions of a process once: the matrix products, and the traffic of what is none, which weighs more the
    smaller the model. Not less than the host needs to start that many passes."""
    shape, tokens = work.shape, work.completions / layout.trainer * work.length
    traffic = shape.layers * shape.hidden * 2 * known.activation_passes
    product = token_flops(work, work.length) / (card.flops * known.matrix)
    device = tokens * (product + traffic / (card.bandwidth * known.bandwidth))
    return max(device, layout.accumulation * host(work, known))


def logprobs(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """One pass for vLLM's importance sampling correction, one for a reference."""
    passes = int(layout.generation.engines and work.corrected) + int(work.reference)
    once = forward(work, layout, card, known)
    if layout.kind in ("fsdp2", "zero3"):
        once += layout.accumulation * gather(work, layout, card, known)
    return passes * once


def training(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """Forward, backward of twice its work, forward again with checkpointing; gradients over a ring (2 (n-1)/n of their
    bytes, Patarasuk and Yuan 2009), under fsdp2 and zero3 weights gathered for forward and backward of every pass;
    AdamW reads and writes weights and two moments."""
    passes = 4 if work.checkpointing else 3
    compute = work.iterations * passes * forward(work, layout, card, known)
    return compute + _reduction(work, layout, card, known) + _optimizer(work, layout, card, known)


def _reduction(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    n = layout.trainer
    if n == 1:
        return 0.0
    each = 2 if layout.kind != "ddp" else work.held_bytes if work.adapter == "none" else 4
    ring = work.iterations * 2 * (n - 1) / n * work.trainable * each / _rate(layout, card, known)
    if layout.kind in ("ddp", "zero2"):
        return ring
    times = work.iterations * layout.accumulation
    return ring / 2 * (layout.accumulation if layout.kind == "zero3" else 1) + 2 * times * gather(
        work, layout, card, known
    )


def gather(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    """All weights once to every process, bf16."""
    n = layout.trainer
    return (n - 1) / n * memory.weights(work) / _rate(layout, card, known)


def _rate(layout: Layout, card: Card, known: Coefficients) -> float:
    """Between the trainer's GPUs. A ring over several machines is as slow as its slowest link; of a trainer beside a
    server one machine may be all it has, which is not looked into."""
    return (card.link if layout.nodes == 1 else card.network) * known.link


def _optimizer(work: Workload, layout: Layout, card: Card, known: Coefficients) -> float:
    sharded = layout.trainer if layout.kind != "ddp" else 1
    each = 7 * (work.held_bytes if work.adapter == "none" and layout.kind == "ddp" else 4)
    rate = HOST_BANDWIDTH if work.offload else card.bandwidth * known.bandwidth
    return work.iterations * work.trainable * each / sharded / rate
