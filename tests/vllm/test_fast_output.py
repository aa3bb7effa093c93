"""vLLM's output path without texts gives what TRL's ordinary one gives, from one real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from grpo_lab.config.places import ASSETS
from grpo_lab.server.command import cpu_env
from tests.conftest import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROGRAM = """
import json, sys
import torch.nn.functional
from trl.generation import vllm_generation as trl_generation
from vllm import LLM, SamplingParams
from grpo_lab.worker.patches import fast_output

def sample(**options):
    sampling = SamplingParams(n=4, max_tokens=24, temperature=1.0, seed=5, **options)
    outputs = engine.generate([{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [9]}], sampling, use_tqdm=False)
    completions = [completion for output in outputs for completion in output.outputs]
    return [completion.token_ids for completion in completions], completions, *trl_generation.extract_logprobs(outputs)

engine = LLM(sys.argv[1], kv_cache_memory_bytes=2**27, max_model_len=64, enforce_eager=True,
             logprobs_mode="processed_logprobs")
plain_ids, plain, *plain_values = sample(logprobs=0)
stopped = [completion.text for completion in sample(logprobs=0, stop=["1"])[1]]
fast_output.install(engine, trl_generation)
ids, completions, *values = sample(logprobs=0)
print("RESULT", json.dumps({
    "same ids": ids == plain_ids, "same values": values == plain_values, "tokens": sum(map(len, ids)),
    "texts": sum(bool(completion.text) for completion in completions),
    "plain texts": sum(bool(completion.text) for completion in plain),
    "same stops": [completion.text for completion in sample(logprobs=0, stop=["1"])[1]] == stopped,
    "more": sample(logprobs=2)[2] is not None,
}))
"""


def test_ids_and_log_probabilities_are_identical_and_stop_strings_still_stop() -> None:
    env = {**os.environ, **cpu_env(1, cores=2, engine={"kv_cache_memory_bytes": 0}), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", PROGRAM, str(ASSETS / "tiny")]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=env, timeout=300, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, ended.stdout + ended.stderr
    seen = json.loads(lines[0].removeprefix("RESULT "))
    assert seen.pop("tokens") > 8
    assert seen.pop("plain texts") > 0
    assert seen.pop("texts") == 0
    assert set(seen.values()) == {True}, seen
