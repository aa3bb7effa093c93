"""The harness with vLLM's CPU build: the same commands as on GPUs, real engines, weights that arrive."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest

from grpo_lab.config.places import ASSETS
from grpo_lab.machine.ports import lease
from grpo_lab.machine.processes import Child
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.server.command import server_argv, server_env, vllm_metadata
from grpo_lab.server.key import KEY
from grpo_lab.server.process import fetch
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, SMALL_CACHE, cli, first_completions, running, wait_for_step

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LOGP_DIFFERENCE = 1e-3
"""Nats a token, float32 on both sides."""

LAYOUTS = {
    "colocate": ["vllm=colocate"],
    "colocate-tp2": ["vllm=colocate", "vllm.tp=2"],
    "colocate-lora": ["vllm=colocate", "peft=lora", "grpo.learning_rate=1e-3"],
    "server": ["vllm=server"],
    "server-tp2": ["vllm=server", "vllm.tp=2"],
    "server-dp2": ["vllm=server", "vllm.dp=2"],
}
LEARNING = ["grpo.max_steps=10", "eval.problems=400", "tracker=none", "vllm.check_sync_every=1", "seed=7"]
LEARNING += ["eval.every=5", "eval.every_problems=40", SMALL_CACHE]
SECRET = "zqserverkey7731"

Learned = Callable[[str], tuple[Run, "subprocess.CompletedProcess[str]"]]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """The run of a layout and how it ended; each is run once."""
    runs = tmp_path_factory.mktemp("learned")

    @cache
    def run_of(layout: str) -> tuple[Run, subprocess.CompletedProcess[str]]:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(KEY, SECRET)
            return Run(runs / layout), cli(
                *LEARNING, *LAYOUTS[layout], f"runs_dir={runs}", f"name={layout}", timeout_s=600
            )

    return run_of


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_learns_and_its_weights_arrive(layout: str, learned: Learned) -> None:
    run, ended = learned(layout)
    assert ended.returncode == 0, ended.stdout + ended.stderr + tail(run)
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert row["sampling/sampling_logp_difference/mean"] < LOGP_DIFFERENCE
        assert row["time_s/generate"] > 0
    assert all(row["time_s/sync"] > 0 for row in rows[1:])  # before the first step the evaluation had synced
    assert [(row["step"], row["eval/n"]) for row in rows if "eval/n" in row] == [(5, 40)]
    gain = store.read_json(run.result)["metrics"]["accuracy_gain"]
    assert gain["ci95"][0] > 0
    assert answers_differ(run)
    assert not leftovers(run.folder)
    assert not [file for file in run.folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert SECRET not in ended.stdout + ended.stderr


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.startswith("server")])
def test_the_seed_reaches_a_server(layout: str, learned: Learned) -> None:
    """The run ends as failed if the server says that it has another seed; so it has this one."""
    run, ended = learned(layout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert first_completions(run)
    assert "--seed" in (argv := store.read_json(run.plan)["server"]["argv"])
    assert argv[argv.index("--seed") + 1] == "7"


def test_two_seeds_differ_and_one_seed_repeats(learned: Learned, runs: Path) -> None:
    """Colocated. A server samples in the order in which its requests are scheduled, which no seed decides."""
    first, ended = learned("colocate")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for seed in (7, 8):
        asked = ["grpo.max_steps=1", "eval.enabled=false", "tracker=none", SMALL_CACHE, *LAYOUTS["colocate"]]
        ended = cli(*asked, f"seed={seed}", f"runs_dir={runs}", f"name={seed}", timeout_s=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert first_completions(Run(runs / "7")) == first_completions(first)
    assert first_completions(Run(runs / "8")) != first_completions(first)


def test_wrong_weights_end_the_run(runs: Path) -> None:
    """vLLM computes something else than the trainer: told to round to bfloat16, held to a tight limit."""
    ended = cli(
        *SHORT,
        "vllm=colocate",
        SMALL_CACHE,
        "vllm.engine.dtype=bfloat16",
        "vllm.max_logp_difference=1e-4",
        f"runs_dir={runs}",
        "name=stale",
        timeout_s=600,
    )
    failure = store.read_json(Run(runs / "stale").result)["failure"]
    assert ended.returncode == 1
    assert "stale or wrong" in failure["message"]


def test_a_server_that_somebody_else_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm.url: refused with what does not fit or without its key, used where all does, and left running."""
    monkeypatch.setenv(KEY, "its own")
    policy = {"served_name": "mine", "seed": 3, "max_model_len": None, "gpu_memory_utilization": None}
    engine = {"enforce_eager": True, "dtype": "float32", "kv_cache_memory_bytes": 2**27}
    env = server_env(on_cpu=True, tp=1, dp=1, cores=2, engine=engine)
    env |= vllm_metadata(tmp_path, env)
    with lease(1) as (port,):
        where = {"host": "127.0.0.1", "port": port, "tp": 1, "dp": 1, "backend": "gloo"}
        argv = server_argv(str(ASSETS / "tiny"), **policy, **where, engine=engine, guarded=False)
        url = f"http://127.0.0.1:{port}"
        asked = [*SHORT, "vllm=server", f"vllm.url={url}", "eval.enabled=false", f"runs_dir={tmp_path}/runs"]
        with Child(argv, env=env, log=tmp_path / "server.log") as server:
            wait_for_health(url)
            misfit = cli(*asked, "vllm.tp=2", "name=misfit")
            fitting = cli(*asked, "name=fitting")
            monkeypatch.delenv(KEY)
            keyless = cli(*asked, "name=keyless")
            assert server.poll() is None
    assert misfit.returncode == 1
    assert "tensor-parallel size is 1, expected 2" in misfit.stdout
    assert fitting.returncode == 0, fitting.stdout + fitting.stderr
    assert keyless.returncode == 1
    assert "asks for its key; set VLLM_API_KEY to it in the environment" in keyless.stdout


def wait_for_health(url: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError):
            if fetch(f"{url}/health", 1.0)[0] == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(url)


ENDLESS = [*SHORT, "vllm=server", SMALL_CACHE, "grpo.max_steps=2000", "eval.enabled=false"]


def test_a_killed_conductor_takes_the_server_with_it(runs: Path) -> None:
    run = Run(runs / "orphan")
    with running(*ENDLESS, f"runs_dir={runs}", "name=orphan") as process:
        wait_for_step(run, 1)
        names = [" ".join(one.cmdline()) for one in leftovers(run.folder)]
        process.kill()
    deadline = time.monotonic() + 15
    while leftovers(run.folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert any("EngineCore" in name for name in names)
    assert any("grpo_lab.worker" in name for name in names)
    assert not leftovers(run.folder)


def test_a_server_that_dies_ends_the_run_with_its_class(runs: Path) -> None:
    run = Run(runs / "dies")
    with running(*ENDLESS, f"runs_dir={runs}", "name=dies") as process:
        wait_for_step(run, 1)
        engine = next(one for one in leftovers(run.folder) if "EngineCore" in " ".join(one.cmdline()))
        engine.kill()
        process.communicate(timeout=60)
    assert process.returncode == 1
    assert store.read_json(run.result)["failure"]["class"] == "server_died"
    assert not leftovers(run.folder)


def answers_differ(run: Run) -> bool:
    """Whether completions of one prompt differ among themselves, for some prompt of the first step.

    Not for each: a policy that is sure of a problem gives one answer to it, however often it is drawn.
    """
    rows = [row for row in pyarrow.parquet.read_table(run.completions).to_pylist() if row["step"] == 1]
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(json.dumps(row["prompt"]), set()).add(row["completion"][0]["content"])
    return any(len(texts) > 1 for texts in answers.values())


def leftovers(folder: Path) -> list[psutil.Process]:
    """Living processes of the run, by the variable that each carries in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(RUN_VARIABLE) == str(folder)
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if alive and ours:
            found.append(process)
    return found


def tail(run: Run) -> str:
    logs = [log for log in (run.server_log, run.worker_log) if log.is_file()]
    return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
