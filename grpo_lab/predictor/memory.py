"""Bytes that each role needs on a GPU, and what they are needed for.

Held to `torch.cuda.max_memory_reserved` and nvidia-smi of real runs (docs/plan.md says which).
"""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lab.config import upstream
from grpo_lab.machine.cards import Card
from grpo_lab.predictor.parts import Layout, Need
from grpo_lab.predictor.workload import Workload

GIB = 2**30
CONTEXT = 0.6 * GIB
"""CUDA context and NCCL, outside of torch's allocator."""
SLACK = 1.07
"""Reserved over needed: blocks of torch's caching allocator that no other tensor fits (H200, 0.5B and 1.5B)."""
BUFFER = GIB
"""One of vLLM's two buffers of a packed transfer (weight_transfer/packed_tensor.py)."""
LEAKS_BELOW, STREAMS = (0, 29), 32
"""vLLM before 0.29 makes new CUDA streams for every transfer (its gh-52950), and torch, which has so many, keeps freed
blocks for each."""
GRAPHS = 1.0 * GIB
"""CUDA graphs of the decode sizes, outside of vLLM's share."""
TILE_TOKENS, TILE_VOCAB = 4096, 32768
"""Of TRL 1.16's chunked log-probabilities, which never hold batch x length x vocabulary logits."""
LIVE = 2e9
"""Bytes of gathered layers and reduce buckets under ZeRO (stage3_max_live_parameters 1e9, reduce_bucket_size 5e8)."""


def weights(work: Workload, bytes_each: float = 2.0) -> float:
    return work.parameters * bytes_each


def kv_bytes(work: Workload, tp: int = 1) -> float:
    """Of one token on one GPU, bf16; kv heads beyond tp are repeated, not split."""
    shape = work.shape
    return 2.0 * shape.layers * max(1.0, shape.kv_heads / tp) * shape.head_dim * 2


def trainer(work: Workload, layout: Layout) -> Need:
    """Of one process of the trainer, vLLM's share left out."""
    parts = _states(work, layout)
    parts["activations"] = activations(work, layout.per_device, wide=work.held_bytes == 4 and layout.kind == "ddp")
    parts["logits"] = logits(work, layout.per_device)
    if layout.kind == "ddp" and layout.trainer == layout.accumulation == 1:
        # No gradients of an earlier pass: they come as the activations go.
        parts["gradients"] = max(0.0, parts["gradients"] - parts["activations"] - parts["logits"])
    if not layout.generation.engines:
        parts["generation cache"] = _own_cache(work, layout)
    parts["buffers"] += _transfer(work, layout)
    slack = {part: size * SLACK for part, size in parts.items() if size}
    return Need({**slack, "context": CONTEXT})


def _states(work: Workload, layout: Layout) -> dict[str, float]:
    """Weights, gradients and AdamW's two moments (ZeRO, arXiv:1910.02054, section 3.1: 2 + 2 + 12 bytes a parameter
    with bf16 weights and float32 masters; under DDP torch's AdamW keeps its moments in the weights' own type)."""
    total, trained, n = work.parameters, work.trainable, layout.trainer
    several, accumulates = n > 1, layout.accumulation * work.iterations > 1
    base = _base_bytes(work)
    if layout.kind == "zero2":
        state = {
            "weights": 2.0 * total,
            "gradients": 2.0 * trained / n,
            "optimizer": 12.0 * trained / n,
            "buffers": LIVE,
        }
    elif layout.kind == "zero3":
        state = {"weights": 2.0 * total / n, "gradients": 2.0 * trained / n, "optimizer": 12.0 * trained / n}
        state["buffers"] = min(LIVE, 2.0 * total) + (0.0 if layout.generation.engines else 2.0 * total)
    elif layout.kind == "fsdp2":
        # accelerate keeps float32 shards; while it accumulates, whole gradients stay on every rank (no_sync).
        state = {"weights": 4.0 * total / n, "gradients": 4.0 * trained / n + (2.0 * trained if accumulates else 0.0)}
        state |= {"optimizer": 8.0 * trained / n, "buffers": _gathered(work)}
    else:
        state = {"weights": base, "gradients": float(trained * _trained_bytes(work))}
        state |= {"optimizer": 2.0 * trained * _trained_bytes(work)}
        # DDP's buckets hold the gradients once more; autocast holds the weights in bf16 beside float32 ones.
        state["buffers"] = trained * _trained_bytes(work) if several else 0.0
        state["buffers"] += 2.0 * total if work.held_bytes == 4 and work.adapter != "qlora" else 0.0
    if work.reference and work.adapter == "none":
        state["reference"] = base / (n if layout.kind in ("zero3", "fsdp2") else 1)
    return _offloaded(state, layout.kind) if work.offload else state


def _base_bytes(work: Workload) -> float:
    """Weights as they are held; QLoRA's are 4 bits and 0.127 for their constants (arXiv:2305.14314, section 3), beside
    embeddings and adapter."""
    if work.adapter != "qlora":
        return float(work.parameters * work.held_bytes) + (4.0 * work.trainable if work.adapter == "lora" else 0.0)
    embedded = work.shape.vocab * work.shape.hidden * (1 if work.shape.tied else 2)
    return (work.parameters - embedded) * (4 + 0.127) / 8 + embedded * 2.0 + 4.0 * work.trainable


def _trained_bytes(work: Workload) -> int:
    return work.held_bytes if work.adapter == "none" else 4


def _offloaded(state: dict[str, float], kind: str) -> dict[str, float]:
    """What stays on the GPU: ZeRO moves the optimizer, stage 3 the weights as well, fsdp2 all of its shards."""
    moved = {"zero2": ("optimizer",), "zero3": ("optimizer", "weights"), "fsdp2": ("optimizer", "weights", "gradients")}
    return {part: 0.0 if part in moved.get(kind, ()) else size for part, size in state.items()}


def _gathered(work: Workload) -> float:
    """Two layers and the output matrix as FSDP2 gathers them, bf16."""
    shape = work.shape
    outer = shape.vocab * shape.hidden
    return 2.0 * (2 * (work.parameters - outer) / shape.layers + outer)


def activations(work: Workload, sequences: int, *, wide: bool) -> float:
    """What the backward pass needs of one pass: counted in what autograd saves of a layer of transformers 5.17 with
    padded prompts (tests/predictor/test_memory.py counts again; the method is that of arXiv:2205.05198, section 4).

    RMSNorm keeps its input in float32, what it normalised, and its output; fused attention its three inputs, keys and
    values repeated for all heads, and its output; SwiGLU four times its width. `wide`: the stream is float32, as
    autocast leaves it with float32 weights, and in place of the norm's output each of five matrices keeps a bf16 copy;
    sharded trainers compute with bf16 copies.

    With checkpointing the residual stream of every layer and the inside of one, otherwise the inside of all.
    """
    shape, tokens = work.shape, sequences * work.length
    norms = (2 * (4 + 4) + 5 * 2 if wide else 2 * (4 + 2 + 2)) * shape.hidden
    attention, mlp = 4 * shape.heads * shape.head_dim, 4 * shape.mlp * max(1, shape.experts_per_token)
    inside = tokens * (norms + 2.0 * (attention + mlp))
    if work.attention == "eager":
        inside += sequences * shape.heads * work.length**2 * 6.0
    stream = tokens * shape.hidden * (4.0 if wide else 2.0)
    return stream * shape.layers + inside if work.checkpointing else inside * shape.layers


def logits(work: Workload, sequences: int) -> float:
    """TRL 1.16 takes log-probabilities in tiles (kernels/chunked_logprob.py): one tile, float32 gradients of the
    hidden states and, where the output layer is trained, of its whole matrix."""
    shape, tokens = work.shape, sequences * work.completion
    tile = min(tokens, TILE_TOKENS) * min(shape.vocab, TILE_VOCAB) * 2.0
    return tile + 8.0 * tokens * shape.hidden + (4.0 * shape.vocab * shape.hidden if work.adapter == "none" else 0.0)


def _own_cache(work: Workload, layout: Layout) -> float:
    """transformers' cache for all completions of a process at once, twice: it grows by concatenation; and float32
    logits of one position. Its blocks are of no use to the training pass, so they come on top of it."""
    own = work.completions / layout.trainer
    return own * (2 * work.length * kv_bytes(work) + 3 * 4.0 * work.shape.vocab)


def _transfer(work: Workload, layout: Layout) -> float:
    """Buffers of rank 0 for a server, two packed and what goes into them; colocated, the largest matrix gathered."""
    if layout.generation.served:
        return 2 * min(BUFFER, weights(work, work.held_bytes)) + min(BUFFER, weights(work, work.held_bytes))
    sharded = layout.kind in ("fsdp2", "zero3")
    return 4.0 * work.shape.vocab * work.shape.hidden if layout.generation.colocated and sharded else 0.0


def left_behind(work: Workload, layout: Layout, vllm: str, syncs: int) -> float:
    """Bytes that a trainer beside a server keeps reserved without need, after so many transfers; `vllm`: its version,
    empty if unknown. Torch frees them before it is out of memory, so they are no part of what has to fit."""
    if not layout.generation.served or not layout.trainer or not leaks(vllm):
        return 0.0
    return min(2 * max(0, syncs - 1), STREAMS) * min(BUFFER, weights(work, work.held_bytes))


def leaks(vllm: str) -> bool:
    return bool(vllm) and upstream.release(vllm) < LEAKS_BELOW


@dataclass(frozen=True)
class Engine:
    """A GPU of vLLM: its share, what is in it, and what it needs beside it. Bytes."""

    share: float
    weights: float
    profiled: float
    """Activations and logits of vLLM's largest batch."""
    pool: float
    """Left for the KV cache; may be negative."""
    beside: float
    """CUDA graphs and, of a server, buffers for incoming weights."""
    sequences: float
    """Completions that the pool holds at a time, on all GPUs of the engine together, each with its part of a prompt."""

    @property
    def parts(self) -> dict[str, float]:
        cache = {"KV cache": max(self.pool, 0.0)}
        return {
            "weights": self.weights,
            "vLLM's activations": self.profiled,
            **cache,
            "CUDA graphs, buffers": self.beside,
        }


def engine(work: Workload, layout: Layout, card: Card) -> Engine:
    """One GPU of the tp that an engine has. vLLM takes its share of the whole card, whatever else is on it; where it is
    told the size of its KV cache, that and what it needs beside."""
    shape, tp = work.shape, layout.tp
    share = (layout.generation.memory_share if work.utilization is None else work.utilization) * card.memory
    own = weights(work) / tp
    batched = work.max_num_batched_tokens or (4096 if layout.generation.colocated else 8192 if card.large else 2048)
    rows = min(most_sequences(work, layout, card), batched)
    mlp = shape.mlp * max(1, shape.experts_per_token)
    profiled = batched * (4.0 * shape.hidden + 6.0 * mlp / tp) + 8.0 * rows * shape.vocab
    beneath = own + profiled + CONTEXT
    share, pool = (share, share - beneath) if work.cache is None else (beneath + work.cache, work.cache)
    beside = (0.0 if work.eager else GRAPHS) + (4 * min(BUFFER, own) if layout.generation.served else 0.0)
    each = work.prompt / sharing(work, layout) + work.completion
    return Engine(share, own, profiled, pool, beside, max(pool, 0.0) / (kv_bytes(work, tp) * each))


def sharing(work: Workload, layout: Layout) -> float:
    """Completions of one engine that have a prompt, and its KV cache, in common. A trainer's process gives its engine
    whole groups; a server deals the completions of one group out to all its engines (experiments/tp_dp_2gpu: of 8
    completions 7 find their prompt in the cache of one engine, 6 in those of two)."""
    return max(1.0, work.generations / layout.dp) if layout.generation.served else work.generations


def most_sequences(work: Workload, layout: Layout, card: Card) -> int:
    """max_num_seqs: TRL asks a colocated engine for all of its completions at once, a server has vLLM's default."""
    if work.max_num_seqs:
        return work.max_num_seqs
    if layout.generation.colocated:
        return max(1, work.completions // layout.dp)
    return 1024 if card.large else 256


def fullest(work: Workload, layout: Layout, card: Card) -> dict[str, Need]:
    """Role -> what its fullest GPU needs. Colocated roles share one; asleep, vLLM leaves nothing of note while the
    trainer trains, and the trainer only its states while vLLM generates."""
    if not layout.generation.engines:
        return {"trainer": trainer(work, layout)}
    vllm = engine(work, layout, card)
    if layout.generation.served:
        rest = max(0.0, vllm.share - vllm.weights - vllm.profiled - max(vllm.pool, 0.0))
        server = {"server": Need({**vllm.parts, "context": rest}, given=vllm.share + vllm.beside)}
        return {"trainer": trainer(work, layout), **server} if layout.trainer else server
    train = trainer(work, layout)
    beside = {"vLLM's share": vllm.share, "CUDA graphs": vllm.beside}
    given = vllm.share + vllm.beside
    if not work.sleep:
        return {"trainer and vLLM": Need({**train.parts, **beside}, given)}
    kept = {part: size for part, size in train.parts.items() if part not in ("gradients", "activations", "logits")}
    return {"trainer and vLLM in turn": max(train, Need({**kept, **beside}, given), key=lambda need: need.total)}
