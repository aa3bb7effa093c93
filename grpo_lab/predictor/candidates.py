"""Every layout of a run on some hardware: planned, judged, timed on paper, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config, DistributedConfig
from grpo_lab.machine.cards import Card
from grpo_lab.machine.clusters import Cluster
from grpo_lab.planner import modes
from grpo_lab.planner.layout import allowed_gpus
from grpo_lab.planner.modes import COLOCATE, OFF, SERVER
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import make_plan
from grpo_lab.predictor import memory, speed, verdict
from grpo_lab.predictor.calibration import Calibration
from grpo_lab.predictor.parts import Layout, Phases
from grpo_lab.predictor.verdict import FITS, NO, REFUSED, TIGHT, Verdict
from grpo_lab.predictor.workload import Workload, workload

KINDS = ("ddp", "fsdp2", "zero2", "zero3")


@dataclass(frozen=True)
class Judged:
    """One layout of a run."""

    config: Config
    """With this layout."""
    name: str
    verdict: Verdict
    gpus: int = 0
    layout: Layout | None = None
    phases: Phases | None = None
    """Null where it does not run."""
    tokens_per_s_per_gpu: float = 0.0
    generated_tokens_per_s: float = 0.0
    band: float | None = None
    """The true rate lies between rate / (1 + band) and rate x (1 + band) in 95 of 100 cases; None: not known."""
    largest_batch: int = 0
    """grpo.per_device_train_batch_size."""
    largest_completion: int = 0
    """Tokens."""
    note: str = ""

    @property
    def runs(self) -> bool:
        return self.verdict.kind in (FITS, TIGHT)


def judged(config: Config, cluster: Cluster, calibration: Calibration) -> list[Judged]:
    """All layouts: those that run by predicted speed, then the others.

    Raises:
        RequestError: for a model of which nothing can be predicted.
    """
    work = workload(config)
    room = replace(cluster, per_node=len(allowed_gpus(config, cluster.as_machine())))
    layouts = [
        _judge(bare, candidate, left, work, room, calibration) for bare, candidate, left in candidates(config, room)
    ]
    return sorted(layouts, key=lambda candidate: (not candidate.runs, -candidate.tokens_per_s_per_gpu))


def candidates(config: Config, cluster: Cluster) -> Iterator[tuple[Layout, Config, int]]:
    """Layout (less its batch), config and GPUs left over."""
    splits = _serving(config, cluster) if config.plan.generation else _splits(config, cluster)
    for mode, tp, dp, trainer, left in splits:
        for kind in KINDS if trainer > 1 else KINDS[:1]:
            spread = DistributedConfig(kind, config.distributed.offload and kind != "ddp")
            vllm = replace(config.vllm, mode=mode, tp=tp, dp=dp, sleep=config.vllm.sleep and modes.mode(mode).colocated)
            own = trainer if modes.mode(mode).served else None
            candidate = replace(config, vllm=vllm, distributed=spread, trainer_gpus=own, nodes=cluster.nodes)
            yield Layout(mode, tp, dp, trainer, kind, 0, 0, cluster.nodes), candidate, left


def _sizes(config: Config, each: int) -> list[int]:
    """Of tensor parallelism, within a machine of so many GPUs."""
    return sorted({size for size in (1, 2, 4, 8, 16, config.vllm.tp) if size <= each})


def _serving(config: Config, cluster: Cluster) -> Iterator[tuple[str, int, int, int, int]]:
    for tp in _sizes(config, cluster.per_node):
        dp = cluster.per_node // tp * cluster.nodes
        yield SERVER.name, tp, dp, 0, cluster.gpus - tp * dp


def _splits(config: Config, cluster: Cluster) -> Iterator[tuple[str, int, int, int, int]]:
    """(mode, tp, dp, processes of the trainer, GPUs left over). An engine stays within one machine."""
    gpus, each = cluster.gpus, cluster.per_node
    sizes = _sizes(config, each)
    yield OFF.name, 1, 1, gpus, 0
    for tp in sizes:
        dp = each // tp * cluster.nodes
        yield COLOCATE.name, tp, dp, tp * dp, gpus - tp * dp
    if cluster.nodes == 1:
        for trainer in range(1, gpus):
            for tp in (size for size in sizes if size <= gpus - trainer):
                dp = (gpus - trainer) // tp
                yield SERVER.name, tp, dp, trainer, gpus - trainer - tp * dp
    for hosts in range(1, cluster.nodes):  # over several machines, whole ones for either role
        for tp in sizes:
            dp = each // tp * hosts
            yield SERVER.name, tp, dp, gpus - hosts * each, hosts * each - tp * dp


def _judge(
    bare: Layout, config: Config, left: int, work: Workload, cluster: Cluster, calibration: Calibration
) -> Judged:
    name = str(bare)
    if left:
        return _refused(config, name, f"{left} of {cluster.gpus} GPUs would be left over")
    try:
        config, layout, own = _settled(bare, config, work, cluster)
    except RequestError as error:
        return _refused(config, name, str(error))
    card, serving = cluster.card, layout.trainer == 0
    judgement = verdict.judge(own, layout, card)
    candidate = Judged(
        config,
        name,
        judgement,
        layout.gpus,
        layout,
        largest_batch=0 if serving else verdict.largest_batch(own, layout, card),
        largest_completion=verdict.largest_completion(own, layout, card),
        note=_note(config, own, work),
    )
    return candidate if judgement.kind == NO else _timed(candidate, own, cluster, calibration)


def _timed(judged: Judged, work: Workload, cluster: Cluster, calibration: Calibration) -> Judged:
    layout, card, tokens = judged.layout, cluster.card, work.completions * work.completion
    assert layout is not None
    phases = speed.phases(work, layout, card, calibration.coefficients)
    return replace(
        judged,
        note=" ".join(text for text in (judged.note, _waves(work, layout, card)) if text),
        phases=phases,
        tokens_per_s_per_gpu=tokens / phases.step / layout.gpus,
        generated_tokens_per_s=tokens / phases.generate,
        band=calibration.band(card.name, layout.mode),
    )


def _waves(work: Workload, layout: Layout, card: Card) -> str:
    """Where an engine cannot take all of its completions at once, and so reads its weights more often."""
    if not layout.generation.engines:
        return ""
    own, room = work.completions / layout.dp, memory.engine(work, layout, card).sequences
    most = min(room, memory.most_sequences(work, layout, card))
    limit = "its KV cache holds" if room <= most else "max_num_seqs is"
    return f"({limit} {most:.0f} of {own:.0f} completions of an engine)" if most < own else ""


def _settled(bare: Layout, config: Config, work: Workload, cluster: Cluster) -> tuple[Config, Layout, Workload]:
    """What would run: with a pass and a context that fit, where the asked ones do not and it changes no result.

    Raises:
        RequestError: as make_plan does.
    """
    layout, work = _planned(bare, config, cluster), replace(work, offload=config.distributed.offload)
    if layout.generation.engines and work.max_model_len is None and not _holds_context(work, layout, cluster):
        length = min(verdict.padded(work.length), work.shape.context or work.length)
        config = replace(config, vllm=replace(config.vllm, max_model_len=length))
        work = replace(work, max_model_len=length)
    if layout.trainer and verdict.judge(work, layout, cluster.card).kind != FITS:
        size = verdict.largest_batch(work, layout, cluster.card)
        if 0 < size < layout.per_device:
            config = replace(config, grpo={**config.grpo, "per_device_train_batch_size": size})
            layout = _planned(bare, config, cluster)
    return config, layout, work


def _planned(bare: Layout, config: Config, cluster: Cluster) -> Layout:
    folder, ports = Path("runs/plan"), Ports(0, 0, 0)
    if bare.trainer == 0:  # the plan of a run has a trainer; the server is checked beside one that comes on top
        beside = replace(cluster, per_node=cluster.gpus + 1, nodes=1, machine=None)
        alone = replace(config, nodes=1, trainer_gpus=1, gpus="auto")
        make_plan(alone, beside.as_machine(), folder=folder, ports=ports)
        return bare
    return Layout.of(config, make_plan(config, cluster.as_machine(), folder=folder, ports=ports))


def _holds_context(work: Workload, layout: Layout, cluster: Cluster) -> bool:
    engine = memory.engine(work, layout, cluster.card)
    return engine.pool * (1 - verdict.MARGIN) >= memory.kv_bytes(work, layout.tp) * work.served_length


def _note(config: Config, own: Workload, asked: Workload) -> str:
    """What the layout sets beyond itself."""
    notes = [f"vllm.max_model_len={own.max_model_len}"] if own.max_model_len != asked.max_model_len else []
    size = config.grpo["per_device_train_batch_size"]
    return " ".join([*notes, f"grpo.per_device_train_batch_size={size}"] if size != asked.per_device else notes)


def _refused(config: Config, name: str, reason: str) -> Judged:
    return Judged(config, name, Verdict(REFUSED, reason, {}))
