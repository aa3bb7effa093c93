"""fit= and layout=: refused before anything starts, chosen on paper, chosen by trials."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Gpu, Machine
from grpo_lab.planner import bench as benching
from grpo_lab.planner.train import make_plan
from grpo_lab.predictor import memory
from grpo_lab.predictor.check import advice, advice_bench, check, check_bench
from grpo_lab.predictor.choice import settled
from grpo_lab.predictor.parts import Layout
from grpo_lab.predictor.workload import workload
from grpo_lab.store import folder as store
from grpo_lab.sweep.points import need_of
from tests.conftest import cli
from tests.planner.test_plan import ON_CPU, PORTS, asked, with_gpus

BIG = ("model=qwen2.5-32b", "data=gsm8k", "vllm=off")
BATCH = ("model=qwen2.5-1.5b", "data=gsm8k", "grpo.generation_batch_size=128")


def checked(config: Config, machine: Machine) -> tuple[str, ...]:
    return check(config, make_plan(config, machine, folder=Path("runs/x"), ports=PORTS), machine)


def test_what_cannot_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(
        RequestError, match=r"trainer out of memory: .* most of it optimizer .*distributed=fsdp2"
    ) as said:
        checked(asked(*BIG), with_gpus(8))
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize(("choice", "warned"), [("warn", True), ("off", False)])
def test_the_user_may_go_on_all_the_same(choice: str, warned: bool) -> None:
    said = checked(asked(*BIG, f"fit={choice}"), with_gpus(8))
    assert bool(said) is warned
    assert not warned or "will not fit" in said[0]


def test_what_is_close_is_warned_of_and_started() -> None:
    config = asked(*BATCH, "vllm=off", "gpus=1")
    place = Layout.of(config, make_plan(config, with_gpus(1), folder=Path("runs/x"), ports=PORTS))
    just = memory.trainer(workload(config), place).total / memory.GIB
    card = Machine(gpus=(Gpu("0", "Unknown", just),), cores=8, versions=with_gpus(1).versions)
    (said,) = checked(config, card)
    assert said.startswith("may not fit: perhaps trainer out of memory")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (64, r"out of memory: \d+\.\d GiB of 140\.4, most of it activations .*; grpo.per_device_train_batch_size=\d+;"),
        (1, r"predicted: fits, trainer and vLLM \d+\.\d GiB of 140\.4; python -m grpo_lab.plan"),
    ],
)
def test_a_run_that_went_out_of_memory_gets_advice(batch: int, said: str) -> None:
    one = with_gpus(1)
    sizes = (f"grpo.per_device_train_batch_size={batch}", "model.dtype=bfloat16", "grpo.max_completion_length=1024")
    config = asked(*BATCH, "vllm=colocate", "grpo.gradient_checkpointing=false", "fit=off", *sizes)
    plan = make_plan(config, one, folder=Path("runs/x"), ports=PORTS)
    assert re.search(said, advice(config, plan, one))
    assert advice(config, make_plan(asked(), ON_CPU, folder=Path("runs/x"), ports=PORTS), ON_CPU) == ""


@pytest.mark.parametrize(("version", "told"), [("0.26.0", True), ("0.31.0", False)])
def test_a_trainer_beside_a_server_of_older_vllm_is_told_what_that_leaves(version: str, told: bool) -> None:
    machine = replace(with_gpus(2), versions={**with_gpus(2).versions, "vllm": version})
    config = asked(*BATCH, "vllm=server", "model.dtype=bfloat16")
    plan = make_plan(config, machine, folder=Path("runs/x"), ports=PORTS)
    assert ("leaves 2 GiB with the trainer at every sync" in advice(config, plan, machine)) == told


def test_a_wrong_choice_is_refused() -> None:
    with pytest.raises(RequestError, match="did you mean 'refuse'"):
        checked(asked("fit=refused"), with_gpus(1))


def test_nothing_is_said_without_gpus_or_about_an_unknown_model() -> None:
    assert checked(asked(), ON_CPU) == ()
    assert checked(asked("model=path", "model.path=some/hub-id", "data=gsm8k"), with_gpus(1)) == ()


def test_a_bench_is_judged_without_a_trainer() -> None:
    config = asked("model=qwen2.5-32b", "data=gsm8k", "vllm=server", "vllm.max_model_len=4096")
    plan = benching.make_plan(config, with_gpus(2), folder=Path("runs/x"), ports=PORTS)
    assert check_bench(config, plan, with_gpus(2)) == ()
    with pytest.raises(RequestError, match="trainer out of memory"):
        checked(config, with_gpus(2))
    small = Machine(gpus=(Gpu("0", "NVIDIA L4", 22.5),), cores=8, versions=with_gpus(1).versions)
    plan = benching.make_plan(config, small, folder=Path("runs/x"), ports=PORTS)
    with pytest.raises(RequestError, match="does not hold its weights"):
        check_bench(config, plan, small)
    assert re.match("predicted: vLLM's share .* does not hold its weights", advice_bench(config, plan, small))


def test_a_bench_that_went_out_of_memory_gets_advice() -> None:
    config = asked("model=qwen2.5-7b", "data=gsm8k", "vllm=server", "vllm.max_model_len=4096")
    plan = benching.make_plan(config, with_gpus(1), folder=Path("runs/x"), ports=PORTS)
    said = advice_bench(config, plan, with_gpus(1))
    assert re.fullmatch(r"predicted: fits, server 13\d\.\d GiB of 140\.4; python -m grpo_lab\.plan shows .*", said)
    of_tiny = asked("vllm=server")
    plan = benching.make_plan(of_tiny, ON_CPU, folder=Path("runs/x"), ports=PORTS)
    assert advice_bench(of_tiny, plan, ON_CPU) == ""


def test_the_context_that_vllm_insists_on_is_checked() -> None:
    with pytest.raises(RequestError, match=r"one sequence of 131072 tokens.*vllm\.max_model_len=768"):
        checked(asked("model=qwen2.5-7b", "data=gsm8k", "vllm=colocate", "vllm.gpu_memory_utilization=0.13",
                      "model.dtype=bfloat16"), with_gpus(1))  # fmt: skip


def test_a_point_of_a_sweep_that_cannot_fit_is_refused() -> None:
    with pytest.raises(RequestError, match="out of memory"):
        need_of(asked(*BIG, "distributed=ddp", "dry_run=true"), with_gpus(8))
    assert need_of(asked(*BIG, "dry_run=true"), with_gpus(8)).gpus == 8  # sharded
    assert need_of(asked(*BATCH, "layout=auto", "dry_run=true"), with_gpus(4)).gpus == 4


def test_a_choice_on_paper_says_what_and_by_how_much() -> None:
    said: list[str] = []
    chosen = settled(asked(*BATCH, "layout=auto", "model.dtype=bfloat16"), with_gpus(4), say=said.append)
    assert (chosen.vllm.mode, chosen.vllm.tp, chosen.vllm.dp) == ("colocate", 1, 4)
    assert "colocate tp=1 dp=4" in said[0]
    assert "% before" in said[0]
    assert "tokens/s a GPU (±" in said[0]
    assert make_plan(chosen, with_gpus(4), folder=Path("runs/x"), ports=PORTS).gpus == 4


def test_manual_is_left_alone() -> None:
    config = asked(*BATCH)
    assert settled(config, with_gpus(4), say=lambda text: None) is config


@pytest.mark.parametrize(
    ("overrides", "machine", "said"),
    [
        (("layout=auto",), ON_CPU, "nothing is predicted for processors"),
        (("layout.choose=best",), ON_CPU, "layout.choose=best"),
        (("layout.measure=-1",), ON_CPU, "must not be negative"),
        ((*BIG[:2], "layout=auto"), with_gpus(2), "no layout of this run fits"),
    ],
)
def test_no_choice_is_refused_with_the_reason(overrides: tuple[str, ...], machine: Machine, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        settled(asked(*overrides), machine, say=lambda text: None)


def test_trials_decide_and_one_that_fails_is_left_out() -> None:
    said: list[str] = []
    timed: list[Config] = []

    def trial(config: Config) -> float | None:
        timed.append(config)
        return {1: None, 2: 10.0, 3: 12.0}[len(timed)]

    config = asked(*BATCH, "layout=auto", "layout.measure=3")
    chosen = settled(config, with_gpus(4), say=said.append, trial=trial)
    assert len(timed) == 3
    assert replace(chosen.vllm, max_model_len=None) == replace(timed[2].vllm, max_model_len=None)
    assert "20% before" in said[-1]
    assert {one.grpo["max_steps"] for one in timed} == {config.warmup_steps + 3}
    assert all(one.layout.choose == "manual" and not one.eval.enabled for one in timed)
    with pytest.raises(RequestError, match="none of the 3 layouts that were timed ran"):
        settled(config, with_gpus(4), say=said.append, trial=lambda config: None)


def test_a_trial_is_a_real_run_and_no_result_of_anybodys(runs: Path) -> None:
    ended = cli("layout=auto", "layout.measure=1", f"runs_dir={runs}", "grpo.max_steps=1", "eval.enabled=false",
                "grpo.generation_batch_size=16", "tracker=none", "warmup_steps=0", "name=kept",
                timeout_s=900)  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "layout=auto: off, trainer 1 ddp, measured" in ended.stdout
    (trial,) = (runs / store.TRIALS).rglob("result.json")
    assert json.loads(trial.read_text())["steps"] == 3
    assert not list((runs / store.TRIALS).rglob("checkpoint-*"))
    assert [Path(row["run"]).name for row in store.load(runs)] == ["kept"]
