"""`python -m tools.scaling_table`: the table of docs/plan.md about several machines, as Markdown. Predicted."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from grpo_lab.config import compose as configuration
from grpo_lab.config.places import CONF
from grpo_lab.machine.cards import presets
from grpo_lab.machine.clusters import Cluster
from grpo_lab.predictor import calibration
from grpo_lab.predictor.candidates import Judged, judged
from grpo_lab.store import markdown

ASKED = ("model=qwen2.5-7b", "data=deepmath", "model.dtype=bfloat16", "grpo.max_completion_length=2048")
EACH, COMPLETIONS = 8, 512
"""GPUs and completions of a step for each machine."""
MACHINES = (1, 2, 4, 8, 16)
HEAD = ("machines", "GPUs", "layout", "step, s", "tokens/s per GPU", "of one machine's")


def best(machines: int) -> Judged:
    """The fastest layout that surely fits."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [*ASKED, f"grpo.generation_batch_size={COMPLETIONS * machines}"])
    cluster = Cluster(presets()["h100"], EACH, machines)
    found = judged(configuration.from_hydra(composed), cluster, calibration.load())
    return next(one for one in found if one.verdict.kind == "fits")


def table() -> str:
    fastest = {machines: best(machines) for machines in MACHINES}
    alone = fastest[1].tokens_per_s_per_gpu
    return markdown.table(HEAD, (_row(machines, layout, alone) for machines, layout in fastest.items()))


def _row(machines: int, layout: Judged, alone: float) -> list[str]:
    assert layout.phases is not None
    rate = layout.tokens_per_s_per_gpu
    sizes = [str(machines), str(layout.gpus), layout.name]
    return [*sizes, f"{layout.phases.step:.1f}", f"{rate:,.0f}", f"{rate / alone:.1%}"]


if __name__ == "__main__":
    configuration.register()
    print(table())
