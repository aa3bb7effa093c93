"""The shipped experiments: what they expand to, who gets which GPUs, what is refused; and what their folders hold."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf.errors import InterpolationResolutionError

from grpo_lab.config.cli import explain
from grpo_lab.config.naming import fixed_overrides, sweep_name
from grpo_lab.config.places import CONF
from grpo_lab.config.resolvers import pick, quotient
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.train import Plan, make_plan
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Sweep
from grpo_lab.sweep.composer import Composer
from grpo_lab.sweep.launchers.local import LocalBackend
from grpo_lab.sweep.points import Point, freeze
from tests.conftest import ROOT, cli
from tests.planner.test_plan import PORTS, asked, planned, with_gpus

EXPERIMENTS = ROOT / "experiments"
SHIPPED = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
QWEN = ("qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b")


class Recorder:
    """A launcher that runs nothing and remembers the jobs that it was given."""

    def __init__(self) -> None:
        self.jobs: list[list[str]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.jobs += [list(job) for job in job_overrides]
        return []


class Cluster(LocalBackend):
    """A machine of several, as Slurm gives them."""

    spans = True


def points(
    loader: ConfigLoader, machine: Machine, *arguments: str, kind: type[LocalBackend] = LocalBackend
) -> list[Point]:
    """What `--multirun <arguments>` expands to on such a machine, on paper: the hub is not asked for its models."""
    arguments += ("dry_run=true",)
    master = loader.load_configuration("config", list(arguments), run_mode=RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    sweeper: Any = Plugins.instance().instantiate_sweeper(
        hydra_context=context, task_function=lambda _: None, config=master
    )
    sweeper.launcher = Recorder()
    sweeper.sweep(list(arguments))
    backend = kind(exclusive=True, max_parallel=None, machine=machine)
    fixed = fixed_overrides(arguments, master.hydra.sweeper.params)
    return freeze(Composer(loader, master), sweeper.launcher.jobs, 0, fixed, Sweep(Path("runs/x")), backend)


def plan_of(point: Point, machine: Machine) -> Plan:
    assert point.config is not None
    assert point.refused is None, point.refused
    return make_plan(point.config, machine, folder=point.folder, ports=PORTS)


@pytest.mark.parametrize(
    ("experiment", "gpus", "sizes"),
    [("tp_dp_2gpu", 2, (1, 2)), ("tp_dp_4gpu", 4, (1, 2, 4)), ("tp_dp_8gpu", 8, (1, 2, 4, 8))],
)
def test_layouts(loader: ConfigLoader, experiment: str, gpus: int, sizes: tuple[int, ...]) -> None:
    """Every layout uses all GPUs, and those of one model follow each other."""
    frozen = points(loader, with_gpus(gpus), f"experiment={experiment}", "kind=bench")
    assert [point.name for point in frozen] == [f"model={model},vllm.tp={tp}" for model, tp in product(QWEN, sizes)]
    refused = {point.name: point.refused for point in frozen if point.refused}
    assert list(refused) == (["model=qwen2.5-7b,vllm.tp=8"] if 8 in sizes else [])
    assert all("28 attention heads" in str(reason) for reason in refused.values())
    for point in frozen:
        assert point.config is not None
        assert point.config.vllm.tp * point.config.vllm.dp == gpus
        assert (point.config.model.weights, point.config.launcher.exclusive) == ("random", True)
        longest = [load["prompt_len"] + load["completion_len"] for load in point.config.bench.loads.values()]
        assert min(longest) < 8000 < 8192 < max(longest) <= (point.config.vllm.max_model_len or 0)
        assert point.refused or point.need.gpus == gpus


def test_layouts_train_on_the_same_four_gpus(loader: ConfigLoader) -> None:
    servers = points(loader, with_gpus(4), "experiment=tp_dp_4gpu")
    assert all("vllm=colocate needs none of its own" in str(point.refused) for point in servers)
    frozen = points(loader, with_gpus(4), "experiment=tp_dp_4gpu", "vllm=colocate", "fit=off")
    assert [point.need.gpus for point in frozen] == [4] * 12
    assert [plan_of(point, with_gpus(4)).batch.processes for point in frozen] == [4] * 12


def test_vllm_vs_transformers(loader: ConfigLoader) -> None:
    frozen = points(loader, with_gpus(4), "experiment=vllm_vs_transformers")
    assert [point.name for point in frozen] == [
        f"grpo.num_generations={generations},grpo.max_completion_length={length},vllm={mode}"
        for generations, length, mode in product((16, 8, 4, 32), (64, 128, 256, 512, 1024), ("colocate", "off"))
    ]
    for point in frozen:
        plan = plan_of(point, with_gpus(4))
        assert plan.gpus == 1
        assert (plan.batch.completions, plan.batch.per_device) == (128, 8)
        length, mode = plan.trl["max_completion_length"], plan.mode
        assert plan.trl["generation_kwargs"] == ({"min_new_tokens": length} if mode == "off" else {"ignore_eos": True})
        assert plan.trl["save_strategy"] == "no"
        assert point.config is not None
        assert point.config.peft.options["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize(("gpus", "sizes"), [(4, (1, 2)), (2, (1,))])
def test_colocate_vs_server(loader: ConfigLoader, gpus: int, sizes: tuple[int, ...]) -> None:
    """The same number of GPUs for both, whatever else the machine has."""
    told = [f"gpus={gpus}", f"vllm.tp={','.join(map(str, sizes))}"] if gpus != 4 else []
    frozen = points(loader, with_gpus(8), "experiment=colocate_vs_server", *told)
    models, modes = ("qwen2.5-1.5b", "qwen2.5-7b"), ("colocate", "colocate_sleep", "server")
    assert [point.name for point in frozen] == [
        f"model={model},vllm={mode},vllm.tp={tp},grpo.generation_batch_size={batch}"
        for model, mode, tp, batch in product(models, modes, sizes, (64, 128, 256))
    ]
    for point in frozen:
        plan = plan_of(point, with_gpus(8))
        assert plan.gpus == gpus
        serving = 0 if plan.mode == "colocate" else gpus // 2
        assert (len(plan.server_gpus), len(plan.trainer_gpus)) == (serving, gpus - serving)
        assert plan.trl.get("vllm_enable_sleep_mode") == {"colocate": "sleep" in point.name}.get(plan.mode)


def test_72b_on_16_and_20_gpus(loader: ConfigLoader) -> None:
    nodes = with_gpus(8)
    colocated, server = points(loader, nodes, "experiment=colocate_vs_server_72b", kind=Cluster)
    assert (colocated.name, server.name) == ("vllm=colocate_sleep", "vllm=server")
    found = [plan_of(point, nodes) for point in (colocated, server)]
    assert [(plan.nodes, plan.gpus, plan.batch.processes, plan.tp, plan.dp) for plan in found] == [
        (2, 16, 16, 8, 2),
        (3, 20, 16, 4, 1),
    ]
    assert all(plan.trl["deepspeed"]["zero_optimization"]["stage"] == 3 for plan in found)


@pytest.mark.parametrize(
    ("gpus", "kind", "reason"),
    [
        (8, LocalBackend, "only hydra/launcher=slurm gives a point several"),
        (4, Cluster, "vllm.tp=8: an engine must fit on one machine, and each has 4 GPUs"),
    ],
)
def test_72b_is_refused_elsewhere(loader: ConfigLoader, gpus: int, kind: type[LocalBackend], reason: str) -> None:
    colocated, *_ = points(loader, with_gpus(gpus), "experiment=colocate_vs_server_72b", kind=kind)
    assert reason in str(colocated.refused)


@pytest.mark.parametrize(
    ("experiment", "machine", "expected"),
    [
        ("quickstart_tldr", 8, {"mode": "server", "server_gpus": ("4", "5", "6", "7"), "gpus": 8, "tp": 2, "dp": 2}),
        ("deepmath_qwen3", 1, {"mode": "colocate", "gpus": 1}),
        ("numina_colab", 1, {"mode": "colocate", "gpus": 1}),
    ],
)
def test_examples(experiment: str, machine: int, expected: dict[str, Any]) -> None:
    plan = planned(with_gpus(machine), f"experiment={experiment}")
    assert {key: getattr(plan, key) for key in expected} == expected
    if experiment == "numina_colab":
        assert (plan.batch.completions, plan.batch.generations, plan.trl["max_completion_length"]) == (128, 8, 512)
        assert plan.trl["reward_weights"] == [1.0, 1.0]


def test_the_command_line_beats_an_axis(loader: ConfigLoader) -> None:
    """In its place and under the same names: a part of the table is a part of the same sweep."""
    four = with_gpus(8)
    some = points(loader, four, "experiment=tp_dp_4gpu", "vllm.tp=2", "model=qwen2.5-14b,qwen2.5-3b")
    assert [point.name for point in some] == ["model=qwen2.5-14b,vllm.tp=2", "model=qwen2.5-3b,vllm.tp=2"]
    axes = {"model": "", "vllm.tp": ""}
    name = sweep_name(None, ["experiment=tp_dp_4gpu"], axes)
    assert name.startswith("tp_dp_4gpu-")
    assert name == sweep_name(None, ["experiment=tp_dp_4gpu", "model=qwen2.5-3b", "vllm.tp=1,2"], axes)
    assert name != sweep_name(None, ["experiment=tp_dp_4gpu", "vllm=colocate"], axes)


def test_what_cannot_be_computed_is_said() -> None:
    assert (quotient(8, 2), quotient(8, 2, 4), pick("a", {"a": {"b": 1}})) == (4, 1, {"b": 1})
    with pytest.raises(InterpolationResolutionError) as wrong:
        asked("experiment=tp_dp_4gpu", "vllm.tp=3")
    assert explain(wrong.value) == "vllm.dp: 4 is not a multiple of 3"
    with pytest.raises(InterpolationResolutionError) as missing:
        asked("experiment=colocate_vs_server")
    assert explain(missing.value) == "vllm.dp: no value for off, only for colocate, server"
    with pytest.raises(MissingConfigException) as mistyped:
        asked("experiment=tp_dp_4gpus")
    assert "did you mean 'tp_dp_4gpu'?" in explain(mistyped.value)


def test_dry_run_of_a_table() -> None:
    """As a user without such GPUs looks at it; the folder is called after the experiment."""
    ended = cli("--multirun", "experiment=tp_dp_4gpu", "dry_run=true")
    assert ended.returncode == 0, ended.stderr
    first, *lines = ended.stdout.strip().splitlines()
    assert re.fullmatch(r"runs/tp_dp_4gpu-[0-9a-f]{6}: 12 points, one at a time \(launcher.exclusive\)", first)
    assert [line.split()[0] for line in lines] == [
        f"model={model},vllm.tp={tp}" for model, tp in product(QWEN, (1, 2, 4))
    ]


def test_a_timing(tmp_path: Path) -> None:
    """A real step: the length that was asked for, nothing saved, and a sweep that knows its experiment."""
    sizes = ["grpo.max_steps=1", "grpo.generation_batch_size=8", "grpo.max_completion_length=24", "warmup_steps=0"]
    ended = cli("--multirun", "experiment=base/timing", *sizes, f"runs_dir={tmp_path}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (folder,) = tmp_path.iterdir()
    sweep = Sweep(folder)
    assert store.read_json(sweep.points)["experiment"] == "base/timing"
    run = sweep.run("point")
    (row,) = run.rows()
    assert row["completions/min_length"] == row["completions/max_length"] == 24
    assert run.whole_checkpoints() == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_folder(name: str) -> None:
    """The README gives the command, the index the experiment, and every published number has its source."""
    readme = (EXPERIMENTS / name / "README.md").read_text(encoding="utf-8")
    assert f"experiment={name}" in readme
    assert f"[{name}]({name}/README.md)" in (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert "://" in link or (EXPERIMENTS / name / link).exists(), link
    table = EXPERIMENTS / name / "published.csv"
    if "published.csv" in readme:
        with table.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, strict=True):
                assert list(row)[-4:] == ["metric", "value", "unit", "source"], json.dumps(row)
                assert float(row["value"]) > 0
                assert row["source"].startswith("https://")
    else:
        assert not table.exists()
