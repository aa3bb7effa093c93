"""Asynchronous GRPO through TRL's own injection points: no GPU, no vLLM. About 12 s.

Real here: the plan, the config that TRL gets, the trainer, its loss and optimiser, the rewards (pickled, as for TRL's
scoring process), the rows, evaluation over HTTP. Put in: who makes completions (transformers, before training), where
weights go (a list), and FlashAttention-3, which is the same attention written out for a CPU. Not tried here: NCCL,
TRL's own rollout process, and the kernel.
"""

from __future__ import annotations

import json
import math
import pickle
import queue
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lab.config.places import ASSETS
from grpo_lab.planner.train import make_plan
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.store.measures import PHASES
from grpo_lab.worker import rewards as rewarding
from grpo_lab.worker import train as training
from grpo_lab.worker.trainers import async_grpo as asynchronous
from tests.planner.test_plan import PORTS, asked
from tests.worker.test_algorithms import WITH_KERNELS

GROUP = 4
STEPS = 3
ASKED = ["algorithm=async_grpo", "vllm=server", "trainer_gpus=1", "tracker=none", "rewards.format.weight=0.5"]
ASKED += [f"grpo.max_steps={STEPS}", "grpo.generation_batch_size=8", f"grpo.num_generations={GROUP}"]
ASKED += ["grpo.max_completion_length=16", "eval.problems=6", "grpo.gradient_checkpointing=false", "grpo.bf16=false"]


def attention(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, *_: int, softmax_scale: float, **options: Any
) -> Any:
    """What flash_attn_varlen_func computes: each segment over its keys, causal, aligned at their ends."""
    assert options["causal"]
    assert options["window_size"] == (-1, -1)
    parts = []
    for segment in range(len(cu_q) - 1):
        q, (k, v) = (
            query[cu_q[segment] : cu_q[segment + 1]],
            (x[cu_k[segment] : cu_k[segment + 1]] for x in (key, value)),
        )
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v))
    return torch.cat(parts)


class Rollouts:
    """Completions of the untrained policy, scored as TRL's process scores them: all made before training."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        self.versions: list[int] = []
        self.model = AutoModelForCausalLM.from_pretrained(given["model"])
        self.tokenizer = AutoTokenizer.from_pretrained(given["model"], padding_side="left")
        self.rewards = pickle.loads(pickle.dumps(given["reward_funcs"]))
        self.rows = [given["train_dataset"][number] for number in range(2 * STEPS + 2)]

    def start(self) -> None:
        torch.manual_seed(1)
        for number, row in enumerate(self.rows):
            for sample in self.group(number, row):
                self.rollout_buffer.put(sample)

    @torch.no_grad()
    def group(self, number: int, row: dict[str, Any]) -> Iterator[Any]:
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

        template = self.tokenizer.apply_chat_template
        prompt = template([row["prompt"]] * GROUP, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        width = prompt["input_ids"].shape[1]
        tokens = self.model.generate(**prompt, do_sample=True, max_new_tokens=16, top_k=0)
        logps = self.model(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        ends = [
            list(row[width:]).index(self.tokenizer.eos_token_id) + 1
            if self.tokenizer.eos_token_id in row[width:]
            else 16
            for row in tokens.tolist()
        ]
        texts = self.tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {"prompts": [row["prompt"]] * GROUP, "solution": [row["solution"]] * GROUP, "completion_ids": tokens}
        values = {one.__name__: np.array(one(completions=completions, **columns)) for one in self.rewards}
        total = sum(values.values())
        advantages = (total - total.mean()) / (total.std() + 1e-8)
        for index, end in enumerate(ends):
            length = width + end
            mask = np.arange(length) >= width
            old = np.concatenate([[0.0], logps[index].numpy()])[:length] * mask
            metrics = {"reward": float(total[index])} | {
                f"rewards/{name}": float(x[index]) for name, x in values.items()
            }
            yield RolloutSample(
                row["prompt"], completions[index], tokens[index, :length].numpy(), mask.astype(np.int64),
                old.astype(np.float32), float(advantages[index]), 1, number, metrics,
            )  # fmt: skip

    def stop(self) -> None:
        pass

    def update_model_version(self, model_version: int) -> None:
        self.versions.append(model_version)

    def check_health(self, stale_after_s: float) -> None:
        raise AssertionError("the trainer wants more completions than the plan says")


class Weights:
    """Where weights are sent: kept, one value of each tensor."""

    def __init__(self) -> None:
        self.sent: list[dict[str, float]] = []

    def init_weight_transfer(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def destroy(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.sent.append({name: float(tensor.double().sum()) for name, tensor in iterator})


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An answer of /v1/completions that is right for the first problem only; what was asked."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            texts = ["<answer>no</answer>" for _ in told[-1]["prompt"]]
            choices = [{"index": index, "text": text} for index, text in enumerate(texts)]
            answer = json.dumps({"choices": choices[::-1]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", told
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[dict[str, Any]]]) -> None:
    from trl.experimental import async_grpo
    from trl.experimental.async_grpo import async_grpo_trainer, packing

    trainer, weights, made = async_grpo.AsyncGRPOTrainer, Weights(), []

    def injected(**given: Any) -> Any:
        made.append(Rollouts(given))
        return trainer(**given, rollout_worker=made[-1], weight_transfer=weights)

    monkeypatch.setattr(async_grpo, "AsyncGRPOTrainer", injected)
    monkeypatch.setattr(packing, "_flash_attn", lambda: SimpleNamespace(flash_attn_varlen_func=attention))
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: None)  # asks CUDA for its name
    run = planned_run(tmp_path / "one", server[0])
    training._train(run, 0.0)

    rows = run.rows()
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert 0 <= row["reward"] == pytest.approx(row["rewards/accuracy"] + row["rewards/format"], abs=1e-5)
        assert row["rewards/format"] <= 0.5
        assert row["completion_tokens"] == row["batch/trained_tokens_per_step"] > 8
        assert math.fsum(row[f"time_s/{phase}"] for phase in PHASES) == pytest.approx(row["step_time_s"])
        assert min(row["time_s/train"], row["time_s/sync"]) > 0
        assert "generated_tokens_per_s" not in row
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-3)  # the attention that stands in is the model's own
    assert made[0].versions == list(range(1, STEPS + 2))
    names = {name for name, _ in made[0].model.named_parameters()}
    assert [set(sent) for sent in weights.sent] == [names] * (STEPS + 1)
    assert len({sum(sent.values()) for sent in weights.sent}) == STEPS + 1
    assert store.read_json(run.evaluation("after")) == store.read_json(run.evaluation("before")) == [0] * 6
    assert server[1][0]["model"] == store.read_json(run.plan)["model_path"]
    assert server[1][0]["max_tokens"] == 16
    assert run.last_checkpoint() is not None


def planned_run(folder: Path, url: str) -> Run:
    """The run of a plan for two GPUs, less what names GPUs, and with another server."""
    run, config = Run(folder), asked(*ASKED)
    plan = make_plan(config, WITH_KERNELS, folder=folder, ports=PORTS)
    assert plan.server is not None
    names = plan.server.argv.index("--served-model-name")
    assert plan.server.argv[names + 1 : names + 3] == (plan.server.served_name, plan.model_path)
    run.checkpoints.mkdir(parents=True)
    store.save_config(config, run.config)
    devices = {"devices": plan.devices, "generating_devices": plan.generating_devices}
    trl = {**plan.trl, "use_cpu": True, "vllm_server_base_url": url}
    store.write_json(run.plan, {**asdict(plan), **devices, "trl": trl})
    store.write_json(run.env, {"run_id": "x"})
    return run


def test_rewards_see_the_thinking_block() -> None:
    from trl.chat_template_utils import parse_response

    tokenizer = asynchronous.literal(AutoTokenizer.from_pretrained(ASSETS / "tiny"))
    text = "<think>1</think><answer>2</answer>"
    said = parse_response(tokenizer, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id], prefix=[])
    assert said == {"role": "assistant", "content": text}


def test_rewards_go_to_another_process_and_name_themselves_there() -> None:
    failing = {"_target_": "tests.rows.failing", "step": 0, "weight": 0.5}
    flat = {"_target_": "tests.rows.keyed", "api_key": "1", "weight": 2.0}
    first, second = pickle.loads(pickle.dumps(rewarding.build({"mine": failing, "flat": flat}, weighted=True)))
    completions = [[{"role": "assistant", "content": "abc"}]]
    assert second(completions=completions) == [0.0]
    assert (first.__name__, first.factor) == ("mine", 0.5)
    with pytest.raises(rewarding.BadReward, match="'mine' raised"):
        first(completions=completions, trainer_state=SimpleNamespace(global_step=1))
    error = RuntimeError("Rollout worker child has failed; see chained exception.")  # as TRL raises it
    error.__cause__ = RuntimeError("BadReward: reward 'mine' raised KeyError('x')\nTraceback (most recent call last)")
    told = asynchronous.HANDLING.cause(error)
    assert isinstance(told, rewarding.BadReward)
    assert str(told) == "reward 'mine' raised KeyError('x')"
