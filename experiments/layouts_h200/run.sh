#!/usr/bin/env bash
# Colocate and server on 2 and 4 GPUs, the same batch for all. Usage: run.sh RUNS_DIR [NAME ...]
# Random weights of Qwen2.5-1.5B's shape: speed does not depend on them, and nothing is downloaded.
set -uo pipefail
runs=$1; shift
python=${PYTHON:-python3}
common=(model=qwen2.5-1.5b model.weights=random model.dtype=bfloat16 grpo.generation_batch_size=128
  grpo.num_generations=8 grpo.per_device_train_batch_size=16 grpo.max_completion_length=256 grpo.max_steps=8
  vllm.max_model_len=1024 vllm.check_sync_every=1 eval.enabled=false timeouts.startup=300 timeouts.step=200 tracker=none "runs_dir=$runs")
# vLLM's own all-reduce crashes on virtual machines; without it tensor parallelism works on all.
declare -A layouts=(
  [colocate-2gpu-dp2]="gpus=2 vllm=colocate vllm.dp=2"
  [colocate-2gpu-tp2]="gpus=2 vllm=colocate vllm.tp=2 vllm.engine.disable_custom_all_reduce=true"
  [server-2gpu-1+1]="gpus=2 vllm=server"
  [colocate-4gpu-dp4]="gpus=4 vllm=colocate vllm.dp=4"
  [colocate-4gpu-tp2dp2]="gpus=4 vllm=colocate vllm.tp=2 vllm.dp=2 vllm.engine.disable_custom_all_reduce=true"
  [server-4gpu-dp2+2]="gpus=4 vllm=server vllm.dp=2"
  [server-4gpu-tp2+2]="gpus=4 vllm=server vllm.tp=2 vllm.engine.disable_custom_all_reduce=true"
)
[ $# -gt 0 ] || set -- "${!layouts[@]}"
for name in "$@"; do
  # shellcheck disable=SC2086 # the overrides of a layout are words
  "$python" -m grpo_lab.train "${common[@]}" ${layouts[$name]} "name=$name" || echo "$name failed"
done
"$python" -m grpo_lab.report "$runs" --csv "$runs/table.csv"
