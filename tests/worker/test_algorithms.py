"""TRL's algorithms: what each option becomes, which combinations are refused, and real steps of every one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.config.places import CONF
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.train import make_plan
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.store.measures import PHASES
from tests.conftest import SHORT, cli
from tests.planner.test_plan import ON_CPU, PORTS, QWEN, VERSIONS, asked, planned, with_gpus

SHIPPED = sorted(file.stem for file in (CONF / "algorithm").glob("*.yaml"))
GRPO = [name for name in SHIPPED if name not in ("rloo", "online_dpo", "async_grpo")]
WITH_KERNELS = replace(with_gpus(4), versions={**VERSIONS, "kernels": "0.10.0"})
WITHOUT_BITSANDBYTES = replace(
    with_gpus(2), versions={name: found for name, found in VERSIONS.items() if name != "bitsandbytes"}
)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "async_grpo"])
def test_every_shipped_algorithm_plans(name: str) -> None:
    plan = planned(with_gpus(2), *QWEN, f"algorithm={name}")
    assert plan.batch.completions == 64


@pytest.mark.parametrize("start", ["true", "gaussian", "orthogonal"])
def test_adapters_that_begin_as_no_change_plan(start: str) -> None:
    assert planned(ON_CPU, "peft=lora", f"peft.options.init_lora_weights={start}").batch.completions > 0


REFUSED: list[tuple[Machine, list[str], str]] = [
    (ON_CPU, ["algorithm.kind=ppo"], "algorithm.kind=ppo: valid: "),
    (ON_CPU, ["algorithm=rloo", "grpo.scale_rewards=none"], "RLOOConfig has no such option"),
    (ON_CPU, ["algorithm=rloo", "grpo.loss_type=dapo"], "RLOOConfig has no such option"),
    (ON_CPU, ["algorithm=online_dpo", "grpo.epsilon=0.1"], "OnlineDPOConfig has no such option"),
    (ON_CPU, ["algorithm=online_dpo", "grpo.loss_type=dapo"], "valid: ipo, sigmoid"),
    (ON_CPU, ["algorithm=online_dpo", "grpo.num_generations=8"], "grpo.num_generations=2"),
    (ON_CPU, ["algorithm=online_dpo", "grpo.max_new_tokens=8"], "set grpo.max_completion_length="),
    (ON_CPU, ["algorithm=online_dpo", "grpo.max_length=8"], "is refused, not cut"),
    (ON_CPU, ["algorithm=online_dpo", "grpo.reward_model_path=x"], "set rewards=[model] rewards.model.path="),
    (ON_CPU, ["algorithm=online_dpo", "grpo.per_device_train_batch_size=1"], "at least 2"),
    (with_gpus(1), ["algorithm=online_dpo", "vllm=colocate"], "starts and feeds vLLM by itself"),
    (with_gpus(2), ["algorithm=online_dpo", "vllm=server"], "vllm=off"),
    (with_gpus(2), ["algorithm=online_dpo", "distributed=zero3"], "copies the model as its reference"),
    (with_gpus(2), ["algorithm=online_dpo", "distributed=fsdp2"], "summon_full_params"),
    (with_gpus(2), ["algorithm=online_dpo", "peft=qlora"], "no quantization config"),
    (ON_CPU, ["algorithm=async_grpo"], "vllm=server"),
    (ON_CPU, ["algorithm=async_grpo", "vllm=server"], "needs CUDA GPUs"),
    (with_gpus(4), ["algorithm=async_grpo", "vllm=server"], "pip install kernels"),
    (WITH_KERNELS, ["algorithm=async_grpo", "vllm=server", "grpo.beta=0.1"], "no reference model"),
    (WITH_KERNELS, ["algorithm=async_grpo", "vllm=server", "model.attn=sdpa"], "has its own"),
    (WITH_KERNELS, ["algorithm=async_grpo", "vllm=server", "vllm.weight_transfer=gloo"], "through NCCL"),
    (WITH_KERNELS, ["algorithm=async_grpo", "vllm=server", "distributed=zero3"], "ddp and fsdp2 only"),
    (
        WITH_KERNELS,
        ["algorithm=async_grpo", "vllm=server", "rewards=[model]", "rewards.model.path=x/y"],
        "without a GPU",
    ),
    (
        WITH_KERNELS,
        ["algorithm=async_grpo", "vllm=server", "grpo.loss_type=dapo"],
        "AsyncGRPOConfig has no such option",
    ),
    (ON_CPU, ["peft=qlora"], "need CUDA GPUs; peft=lora"),
    (WITHOUT_BITSANDBYTES, ["peft=qlora"], "pip install bitsandbytes"),
    (with_gpus(1), ["peft=qlora", "vllm=colocate"], "cannot bring 4-bit weights to vLLM"),
    (with_gpus(2), ["peft=qlora", "vllm=server"], "cannot bring 4-bit weights to vLLM"),
    (with_gpus(2), ["peft=qlora", "distributed=fsdp2"], "not sharded"),
    (with_gpus(2), ["peft=qlora", "distributed=zero3_offload"], "not sharded"),
    (with_gpus(1), ["peft=lora", "peft.options.target_modules=[q_proj,lm_head]"], "leave lm_head out"),
    *(
        (
            ON_CPU,
            ["peft=lora", f"peft.options.init_lora_weights={start}"],
            f"init_lora_weights={start.lower()}: the model",
        )
        for start in ("pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "eva", "lora_ga", "false")
    ),
    *(
        (with_gpus(1), ["peft=lora", "vllm=colocate", f"peft.options.{option}"], "leave it out, or vllm=off")
        for option in (
            *("trainable_token_indices=[1,2]", "alora_invocation_tokens=[1]", "lora_bias=true"),
            "layer_replication=[[0,2],[1,4]]",
        )
    ),
    *(
        (
            with_gpus(1),
            ["peft=lora", "vllm=colocate", "model=qwen2.5-0.5b", f"peft.options.{option}"],
            "one tensor for embeddings and output layer",
        )
        for option in ("modules_to_save=[embed_tokens]", "modules_to_save=[lm_head]", "target_modules=[embed_tokens]")
    ),
    (with_gpus(1), ["peft=lora", "grpo.sync_ref_model=true", "grpo.beta=0.1"], "the model without it"),
    (with_gpus(1), ["grpo.sync_ref_model=true"], "without grpo.beta"),
    (with_gpus(1), ["grpo.auto_find_batch_size=true"], "lower grpo.per_device_train_batch_size"),
    (with_gpus(2), ["distributed.offload=true"], "ddp has nothing to offload"),
    (with_gpus(1), ["distributed=zero2_offload"], "one process"),
    (
        with_gpus(2),
        ["vllm=colocate", "vllm.dp=2", "distributed=zero3", "grpo.ds3_gather_for_generation=false"],
        "vLLM needs the gathered weights",
    ),
    (with_gpus(1), ["vllm=colocate", "grpo.loss_type=vespo"], "token_truncate or token_mask"),
    (
        with_gpus(1),
        ["grpo.vllm_importance_sampling_mode=token_truncate", "grpo.vllm_importance_sampling_clip_max=null"],
        "to truncate, set grpo.vllm_importance_sampling_clip_max=",
    ),
]


@pytest.mark.parametrize(
    ("machine", "overrides", "reason"), REFUSED, ids=lambda value: str(value) if isinstance(value, list) else ""
)
def test_refused_with_the_reason(machine: Machine, overrides: list[str], reason: str) -> None:
    with pytest.raises(RequestError) as refusal:
        planned(machine, *QWEN, *overrides)
    assert reason in str(refusal.value)


def test_lora_may_be_sharded_and_qlora_trains_on_several_gpus() -> None:
    for overrides in (["peft=lora", "distributed=zero3"], ["peft=lora", "distributed=fsdp2"], ["peft=qlora"]):
        assert planned(with_gpus(2), *QWEN, *overrides).batch.processes == 2


def test_online_dpo_counts_prompts_where_the_others_count_completions() -> None:
    plan = planned(with_gpus(2), *QWEN, "algorithm=online_dpo", "grpo.per_device_train_batch_size=7")
    assert plan.batch.per_device == 4  # the largest even share of 32 below 7 that divides it
    assert plan.trl["per_device_train_batch_size"] * 2 * 2 * plan.trl["gradient_accumulation_steps"] == 64
    assert plan.trl["max_new_tokens"] == 512
    assert not plan.trl.keys() & {"max_completion_length", "num_generations", "log_completions"}


def test_offloading_leaves_the_optimizer_in_the_hosts_memory() -> None:
    zero = {
        choice: planned(with_gpus(2), *QWEN, f"distributed={choice}").trl["deepspeed"]["zero_optimization"]
        for choice in ("zero2", "zero2_offload")
    }
    assert zero["zero2"] == {"stage": 2}
    assert zero["zero2_offload"] == {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}


def test_weights_are_offloaded_where_they_are_sharded() -> None:
    zero = planned(with_gpus(2), *QWEN, "distributed=zero3_offload").trl["deepspeed"]["zero_optimization"]
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    fsdp = planned(with_gpus(2), *QWEN, "distributed=fsdp2_offload")
    assert fsdp.trl["fsdp_config"]["cpu_offload"] is True
    assert {"ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"} <= fsdp.trainer[0].env.keys()


def test_gradient_checkpointing_is_on_where_memory_is_a_gpus() -> None:
    assert planned(with_gpus(1), *QWEN).trl["gradient_checkpointing"] is True
    assert planned(ON_CPU).trl["gradient_checkpointing"] is False
    assert planned(ON_CPU, "grpo.gradient_checkpointing=true").trl["gradient_checkpointing"] is True
    assert planned(with_gpus(1), *QWEN, "algorithm=online_dpo").trl["gradient_checkpointing"] is False


def test_a_warning_of_trl_is_said_before_the_run() -> None:
    said = planned(ON_CPU, "grpo.importance_sampling_level=sequence").notes
    assert any("algorithm=gspo" in note for note in said)
    assert not planned(ON_CPU, "algorithm=gspo").notes


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than they bring for a policy this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")
def test_every_loss_trains_and_is_another(tmp_path: Path) -> None:
    """Two updates on one batch: at the second the policy has moved, so that clips and sequence ratios tell."""
    import torch

    losses = {}
    for name in GRPO:
        trainer, before, after = trained(tmp_path / name, f"algorithm={name}")
        losses[name] = tuple(row["loss"] for row in trainer.state.log_history if "loss" in row)
        assert len(losses[name]) == 2
        assert all(map(math.isfinite, losses[name]))
        assert torch.isfinite(after).all()
        assert not torch.equal(before, after)
    assert len(set(losses.values())) == len(GRPO) >= 8


def trained(folder: Path, *overrides: str) -> tuple[Any, Any, Any]:
    """The trainer of a short run in this process, and the policy's weights before and after it."""
    import torch

    from grpo_lab.worker.data import load_data
    from grpo_lab.worker.train import build_trainer

    few = ["grpo.max_steps=2", "grpo.num_iterations=2", "grpo.learning_rate=1e-3", "data.train_size=64"]
    batch = ["grpo.generation_batch_size=16", "grpo.per_device_train_batch_size=8", "eval.enabled=false"]
    config = asked(*few, *batch, *overrides)
    plan = make_plan(config, ON_CPU, folder=folder, ports=PORTS)
    training, _ = load_data(config, plan.model_path)
    trainer = build_trainer(config, plan, training)

    def weights() -> Any:
        return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])

    before = weights()
    trainer.train()
    return trainer, before, weights()


@pytest.mark.parametrize("name", ["rloo", "online_dpo"])
def test_another_trainer_runs_to_its_result(name: str, runs: Path) -> None:
    ended = cli(*SHORT, f"algorithm={name}", f"runs_dir={runs}", "name=one")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = Run(runs / "one")
    metrics, rows = store.read_json(run.result)["metrics"], run.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert 0 <= row["reward"] <= 1.2
        assert math.fsum(row[f"time_s/{phase}"] for phase in PHASES) == pytest.approx(row["step_time_s"], rel=0.03)
        assert min(row[f"time_s/{phase}"] for phase in ("generate", "reward", "logprobs", "train")) > 0
    assert metrics["accuracy_before"]["n"] == metrics["accuracy_after"]["n"] == 32
    assert metrics["step_time_s"]["n"] == 2
    assert (metrics["tokens_per_s_per_gpu"] is None) == (name == "online_dpo")  # TRL does not count them there
    assert not run.completions.exists()
    assert "no completions.parquet" in ended.stdout
    assert f"algorithm {name}\n" in ended.stdout
    assert f"finished  4 steps of {name}, the first 2 not timed\n" in ended.stdout
    assert moved(run)


def moved(run: Run) -> bool:
    """Whether the last checkpoint holds other weights than training started from."""
    import torch
    from safetensors.torch import load_file

    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    first = load_file(Path(store.read_json(run.plan)["model_path"]) / "model.safetensors")
    last = load_file(checkpoint[0] / "model.safetensors")
    return any(not torch.equal(first[name], last[name].to(first[name].dtype)) for name in first)


def test_trl_still_has_the_methods_of_its_other_trainers() -> None:
    from trl import RLOOTrainer
    from trl.experimental.online_dpo import OnlineDPOTrainer

    from grpo_lab.worker.patches.trl import PAIRED, SCORED

    for trainer, names in ((RLOOTrainer, [*SCORED, "_generate", "_tokenize_prompts"]), (OnlineDPOTrainer, PAIRED)):
        for name in names:
            assert callable(getattr(trainer, name))
