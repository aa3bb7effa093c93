"""Options of TRL, vLLM and peft: known upstream, of the right type, and left to the user by the plan."""

from __future__ import annotations

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.planner.modes import mode
from grpo_lab.server.command import OWNED as ENGINE_OWNED

OWNED = {
    "output_dir": "runs_dir= and name=",
    "run_name": "name=",
    "seed": "seed=",
    "data_seed": "seed=",
    "report_to": "tracker=",
    "logging_steps": "nothing: every step is logged",
    "logging_strategy": "nothing: every step is logged",
    "gradient_accumulation_steps": "grpo.generation_batch_size= and grpo.per_device_train_batch_size=",
    "steps_per_generation": "grpo.generation_batch_size=; grpo.num_iterations= for more updates a batch",
    "resume_from_checkpoint": "resume=true",
    "reward_weights": "rewards.<name>.weight=",
    "eval_strategy": "eval.enabled=",
    "do_eval": "eval.enabled=",
    "save_strategy": "grpo.save_steps=",
    "use_cpu": "gpus=0",
    "fsdp": "distributed=fsdp2",
    "fsdp_config": "distributed=fsdp2",
    "deepspeed": "distributed=zero2 or zero3",
    "model_init_kwargs": "model.dtype=, model.revision=, model.attn=, model.trust_remote_code=",
    "trust_remote_code": "model.trust_remote_code=",
    "use_vllm": "vllm=off|colocate|server",
    "vllm_mode": "vllm=off|colocate|server",
    "vllm_server_base_url": "vllm.url=",
    "vllm_server_host": "vllm.url=",
    "vllm_server_port": "vllm.url=",
    "vllm_server_timeout": "timeouts.startup=",
    "vllm_group_port": "nothing: a free port is taken",
    "vllm_tensor_parallel_size": "vllm.tp=",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization=",
    "vllm_max_model_length": "vllm.max_model_len=",
    "vllm_enable_sleep_mode": "vllm.sleep=",
    "push_to_hub": "publish.repo_id=",
    "hub_model_id": "publish.repo_id=",
    "hub_private_repo": "publish.private=",
    "hub_token": "HF_TOKEN in the environment",
    "hub_strategy": "publish.repo_id=",
    "hub_always_push": "publish.repo_id=",
    "disable_tqdm": "nothing: the harness shows progress",
    "num_generations_eval": "nothing: pass@1 takes one completion a problem",
}
"""Fields of GRPOConfig that follow from the plan -> the key to set instead."""

SPREAD = (
    "data_parallel_size_local",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "data_parallel_rank",
    "data_parallel_start_rank",
)
"""Engine arguments of a server over several machines."""


def check_upstream(config: Config, machine: Machine) -> None:
    for key in config.grpo:
        if key in OWNED:
            raise RequestError(f"grpo.{key} follows from the plan; set {OWNED[key]}")
    algorithm(config.algorithm.kind).check_options(config)
    if config.peft.kind != "none":
        upstream.check_options("peft.options", config.peft.options, *upstream.LORA)
    if mode(config.vllm.mode).engines and config.vllm.engine and "vllm" in machine.versions:
        upstream.check_options("vllm.engine", config.vllm.engine, *upstream.ENGINE)
        owned = {**ENGINE_OWNED, **dict.fromkeys(SPREAD, "vllm.dp= and nodes=")}
        for key in owned.keys() & config.vllm.engine.keys():
            raise RequestError(f"vllm.engine.{key} follows from the plan; set {owned[key]}")
