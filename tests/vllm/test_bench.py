"""`python -m grpo_lab.bench` with vLLM's CPU build: real engines, every one with work, tokens counted by both sides."""

from __future__ import annotations

import multiprocessing
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.side_by_side import Turn
from grpo_lab.machine.processes import carriers
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conductor.test_bench import argv, bench
from tests.conftest import ROOT, SMALL_CACHE

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROOM = 2**30 // (4 * 2 * 2 * 32 * 4)
"""Tokens in an engine's GiB of KV cache: layers, keys and values, heads, their size, float32."""
SMALL = ["bench.prompts=8", "bench.num_generations=4", "bench.completion_len=8", "tracker=none", "bench.repeats=2"]


def benched(folder: Path, *words: str) -> store.Row:
    ended = bench(*SMALL, *words, f"runs_dir={folder.parent}", f"name={folder.name}", timeout_s=600)
    run = Run(folder)
    logs = [log.read_text(errors="replace")[-3000:] for log in (run.server_log, run.worker_log) if log.is_file()]
    assert ended.returncode == 0, "\n".join([ended.stdout, ended.stderr, *logs])
    result: store.Row = store.read_json(run.result)
    return result


def check_metrics(metrics: Any, *, engines: int, tokens: int) -> None:
    """Of two measured rounds of `tokens` each."""
    assert metrics["generated_tokens_per_s"]["n"] == 2
    assert metrics["engines"]["n"] == engines
    assert sum(metrics["engines"]["generated_tokens"].values()) == 2 * tokens
    assert 0 < metrics["itl_s"]["median"] <= metrics["itl_s"]["p99"]
    assert 0 < metrics["ttft_s"]["median"] <= metrics["ttft_s"]["p99"]
    assert metrics["kv_cache_tokens"] == engines * ROOM
    assert metrics["preemptions"] == 0
    assert metrics["startup_s"] > 1


def test_a_server_of_two_engines(runs: Path) -> None:
    """Three loads after one start. Only completions of one prompt share a prefix, by whole blocks (128 on CPUs)."""
    loads = ["bench.loads.alone={num_generations:1,prompt_len:300}", "bench.loads.shared={prompt_len:300}"]
    loads += ["bench.loads.drawn={completion_len:[2,9],concurrency:3}"]
    result = benched(runs / "server", "vllm=server", "vllm.dp=2", *loads)
    alone, shared, drawn = (load["metrics"] for load in result["loads"])
    check_metrics(alone, engines=2, tokens=8 * 8)
    check_metrics(shared, engines=2, tokens=8 * 4 * 8)
    assert drawn["engines"]["n"] == 2
    assert alone["prefix_cache_hit_share"] == 0
    assert shared["prefix_cache_hit_share"] > 0.2
    assert alone["client_share"] < 1
    rows = Run(runs / "server").rows()
    assert [(row["load"], row["warmup"]) for row in rows[:4]] == [
        ("alone", True),
        ("alone", False),
        ("alone", False),
        ("shared", True),
    ]
    assert [row["ttft_s_n"] for row in rows[:6]] == 3 * [8] + 3 * [8 * 4]
    assert all(row["itl_s_n"] <= row["ttft_s_n"] * 7 for row in rows[:6])  # fewer where first tokens came together
    assert not carriers(RUN_VARIABLE, str(runs / "server"))


def test_colocated_engines(runs: Path) -> None:
    result = benched(runs / "colocated", "vllm=colocate", "vllm.dp=2", "bench.concurrency=5")
    check_metrics(result["metrics"], engines=2, tokens=8 * 4 * 8)
    assert result["metrics"]["engines"]["generated_tokens"] == {"0": 256, "1": 256}
    assert (result["vllm_mode"], result["dp"], result["gpus"]) == ("colocate", 2, 0)


def test_a_server_that_dies_fails_the_bench_with_its_class(runs: Path) -> None:
    run = Run(runs / "dies")
    words = (*SMALL, "vllm=server", SMALL_CACHE, "bench.repeats=100000", f"runs_dir={runs}", "name=dies")
    with subprocess.Popen(
        argv(words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 400
            while not run.rows() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
            found = carriers(RUN_VARIABLE, str(run.folder))
            engine = next(one for one in found if "EngineCore" in " ".join(one.cmdline()))
            engine.send_signal(signal.SIGKILL)
            shown, _ = process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode == 1, shown
    assert store.read_json(run.result)["failure"]["class"] == "server_died"
    assert "server" in store.read_json(run.result)["failure"]["message"]
    assert not carriers(RUN_VARIABLE, str(run.folder))


def test_a_bench_beside_others_waits_for_its_turn_and_for_the_end() -> None:
    parent, ours = multiprocessing.Pipe()
    did: list[str] = []

    def take() -> None:
        with Turn(ours):
            did.append("measured")
        did.append("left")

    member = threading.Thread(target=take)
    member.start()
    assert parent.recv() == "ready"
    member.join(timeout=0.2)
    assert did == []
    parent.send("go")
    assert parent.recv() == "done"
    member.join(timeout=0.2)
    assert did == ["measured"]
    parent.send("end")
    member.join(timeout=10)
    assert did == ["measured", "left"]


def test_servers_side_by_side_are_measured_in_turn(runs: Path) -> None:
    """benchmarks/side_by_side.py: one that is refused does not keep the others waiting."""
    common = shlex.join([*SMALL, "model=tiny", f"runs_dir={runs}"])
    each = [shlex.join([f"name={name}", SMALL_CACHE]) for name in ("first", "second")]
    refused = "name=refused bench.prompt_len=5000"
    script = ROOT / "benchmarks/side_by_side.py"
    command = [sys.executable, str(script), "--common", common, each[0], refused, each[1]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    said = ended.stdout.splitlines()
    assert ended.returncode == 1
    assert "5008 tokens in all, and the context of tiny is 1024" in ended.stderr
    assert said == [
        f"ready: {each[0]}",
        f"failed: {refused}",
        *(f"{word}: {one}" for word, one in (("ready", each[1]), ("done", each[0]), ("done", each[1]))),
    ]
    for name in ("first", "second"):
        run = Run(runs / name)
        assert store.read_json(run.result)["metrics"]["generated_tokens_per_s"]["n"] == 2
        assert store.read_json(run.env)["command"].startswith("python -m grpo_lab.bench vllm=server ")
        assert f"name={name}" in store.read_json(run.env)["command"]
        assert not carriers(RUN_VARIABLE, str(run.folder))
