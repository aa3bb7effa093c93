"""`python -m tools.scaling_table`: the table of docs/plan.md about several machines, as Markdown. Predicted."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from grpo_lab.config import schema as configuration
from grpo_lab.config.schema import CONF
from grpo_lab.machine.cards import Cluster, presets
from grpo_lab.predictor import calibration
from grpo_lab.predictor.candidates import Judged, judged

ASKED = ("model=qwen2.5-7b", "data=deepmath", "model.dtype=bfloat16", "grpo.max_completion_length=2048")
EACH, COMPLETIONS = 8, 512
"""GPUs and completions of a step for each machine."""
MACHINES = (1, 2, 4, 8, 16)


def best(machines: int) -> Judged:
    """The fastest layout that surely fits."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [*ASKED, f"grpo.generation_batch_size={COMPLETIONS * machines}"])
    cluster = Cluster(presets()["h100"], EACH, machines)
    found = judged(configuration.from_hydra(composed), cluster, calibration.load())
    return next(one for one in found if one.verdict.kind == "fits")


def table() -> str:
    rows = [(machines, best(machines)) for machines in MACHINES]
    alone, lines = rows[0][1].tokens_per_s_per_gpu, []
    for machines, one in rows:
        assert one.phases is not None
        rate, cells = one.tokens_per_s_per_gpu, f"| {machines} | {one.gpus} | {one.name} |"
        lines.append(f"{cells} {one.phases.step:.1f} | {rate:,.0f} | {rate / alone:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    configuration.register()
    print(table())
