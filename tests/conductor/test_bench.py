"""`python -m grpo_lab.bench`: loads, plans and counts; refusals; real benches of transformers, stopped and swept."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from grpo_lab.conductor.bench import DEFAULTS
from grpo_lab.config import compose as configuration
from grpo_lab.config import model as policy
from grpo_lab.config.compose import identity
from grpo_lab.config.errors import RequestError
from grpo_lab.config.jobs import BenchConfig
from grpo_lab.config.limits import check_limits
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.machine.power import Meter
from grpo_lab.machine.processes import carriers
from grpo_lab.planner.bench import BenchPlan, make_plan
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.planner.loads import Load, Request, draw, loads_of
from grpo_lab.server.counters import read_counts
from grpo_lab.store import bench as outcome
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run, Sweep
from grpo_lab.store.rounds import Arrivals, BenchFailed, Measured, check_engines, row_of
from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.points import need_of
from tests.conftest import ROOT
from tests.planner.test_plan import ON_CPU, PORTS, with_gpus

SMALL = ["bench.prompts=4", "bench.num_generations=2", "bench.prompt_len=8", "bench.completion_len=4"]
OFF = [*SMALL, "tracker=none"]


def argv(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "grpo_lab.bench", *words]


def bench(*words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(words), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def as_bench() -> Iterator[None]:
    """The command's own defaults in Hydra's store."""
    configuration.register(DEFAULTS)
    yield
    configuration.register()


def asked(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return configuration.from_hydra(compose("config", list(overrides)))


def planned(machine: Machine, *overrides: str) -> BenchPlan:
    return make_plan(asked(*overrides), machine, folder=Path("runs/x"), ports=PORTS)


def test_loads_take_what_they_do_not_change() -> None:
    bench = BenchConfig(prompt_len=100, concurrency=8, loads={"short": {}, "long": {"prompt_len": [10, 9000]}})
    short, long = loads_of(bench)
    assert short == Load("short", 64, 8, 100, 512, 8, timed_every=8)
    assert long == dataclasses.replace(short, name="long", prompt_len=(10, 9000))
    assert long.asked() == {
        "prompts": 64,
        "num_generations": 8,
        "prompt_len": (10, 9000),
        "completion_len": 512,
        "concurrency": 8,
    }
    assert [load.name for load in loads_of(BenchConfig())] == ["default"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": 0}, "bench.prompts=0"),
        ({"concurrency": 0}, "bench.concurrency=0"),
        ({"prompt_len": [5, 2]}, r"bench.prompt_len=\[5, 2\]"),
        ({"completion_len": "long"}, "bench.completion_len=long"),
        ({"completion_len": True}, "bench.completion_len=True"),
        ({"loads": {"a": {"promts": 3}}}, "did you mean 'prompts'"),
        ({"loads": {"a": 3}}, "bench.loads.a=3"),
        ({"loads": {"a b": {}}}, "bench.loads.a b"),
        ({"loads": {"a": {"prompts": 2.5}}}, "bench.loads.a.prompts=2.5"),
    ],
)
def test_loads_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        loads_of(BenchConfig(**wrong))


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}])
def test_rounds_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"bench\.(repeats=0|warmup=-1): must be at least"):
        check_limits(BenchConfig(**wrong), "bench")


def test_requests_are_of_the_asked_lengths_and_no_two_alike() -> None:
    load = Load("x", 200, 4, (16, 24), (3, 9), None, timed_every=16)
    rounds = [draw(load, range(10, 60), seed=1, number=0, turn=turn) for turn in range(3)]
    assert {len(request.prompt) for request in rounds[0]} == set(range(16, 25))
    assert {request.length for request in rounds[0]} == set(range(3, 10))
    sizes = [[(len(request.prompt), request.length) for request in one] for one in rounds]
    assert sizes[0] == sizes[1] == sizes[2], "rounds are repetitions of one work"
    prompts = [request.prompt for one in rounds for request in one]
    assert len(set(prompts)) == 600
    assert len({prompt[:16] for prompt in prompts}) == 600, "no block of a prefix cache serves two prompts"
    assert {token for prompt in prompts for token in prompt} == set(range(10, 60))
    assert sum(request.timed for request in rounds[0]) == 13
    assert draw(load, range(10, 60), seed=1, number=0, turn=0) == rounds[0]
    assert draw(load, range(10, 60), seed=2, number=0, turn=0)[0].prompt != rounds[0][0].prompt
    with pytest.raises(RequestError, match="not so many"):
        draw(Load("x", 5, 1, 1, 1, None, 1), range(4), seed=0, number=0, turn=0)


METRICS = """
# HELP vllm:generation_tokens_total Number of generation tokens processed.
vllm:generation_tokens_total{engine="0",model_name="a \\"b\\""} 640.0
vllm:generation_tokens_total{engine="1",model_name="a"} 1.28e+03
vllm:generation_tokens_created{engine="0",model_name="a"} 1.7e+09
vllm:num_preemptions_total{engine="0",model_name="a"} 2.0
vllm:num_preemptions_total{engine="1",model_name="a"} 1.0
vllm:prefix_cache_queries_total{engine="0",model_name="a"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="a"} 75.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1024"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="1024"} 1.0
python_gc_objects_collected_total{generation="0"} 2.0
"""


def test_counters_are_read_by_engine() -> None:
    counts = read_counts(METRICS)
    assert counts.generated == {"0": 640, "1": 1280}
    assert (counts.preemptions, counts.queried, counts.hits, counts.kv_cache_tokens) == (3, 100, 75, 16384)
    before = dataclasses.replace(counts, generated={"0": 600}, preemptions=1)
    assert counts.since(before).generated == {"0": 40, "1": 1280}
    assert counts.since(before).preemptions == 2


@pytest.mark.parametrize(
    ("engines", "message"),
    [({"0": 64, "1": 0}, "1 of 2 engines"), ({"0": 64}, "1 of 2 engines"), ({"0": 32, "1": 33}, "generated 65 tokens")],
)
def test_work_that_was_not_done_as_planned_fails(engines: dict[str, int], message: str) -> None:
    check_engines({"0": 30, "1": 34}, 2, 64)
    with pytest.raises(BenchFailed, match=message):
        check_engines(engines, 2, 64)


def row(turn: int, seconds: float, **more: Any) -> store.Row:
    arrivals = Arrivals()
    arrivals.add(10.0, [(10.5, 1), (10.7, 2), (11.0, 1)])
    load = Load("x", 4, 8, 16, 4, None, 1)
    measured = Measured(seconds, 128, {"0": 64, "1": 64}, arrivals, preemptions=1, prefix_cache_hit_share=0.5)
    meter = Meter(energy_j={"0": 300.0, "1": 100.0}, seconds=2.0, peak_memory_gib={"0": 1.0 + turn, "1": 2.0})
    return {**row_of(load, turn, 1, measured, meter, devices=2), **more}


def test_a_round_and_the_metrics_of_several() -> None:
    first = row(0, 2.0)
    assert first["warmup"] is True
    assert first["generated_tokens_per_s"] == 64.0
    assert first["generated_tokens_per_s_per_gpu"] == 32.0
    assert first["requests_per_s"] == 2.0
    assert (first["ttft_s"], first["ttft_s_n"], first["itl_s_n"]) == (0.5, 1, 3)
    assert first["itl_s"] == pytest.approx(0.1)  # two came together after 0.2 s, one after 0.3
    assert first["power_w"] == {"0": 150.0, "1": 50.0}
    assert first["tokens_per_joule"] == 0.32
    metrics = outcome.metrics_of([row(turn, seconds) for turn, seconds in ((1, 2.0), (2, 4.0), (3, 1.0))], {})
    assert metrics["generated_tokens_per_s"]["median"] == 64.0
    assert metrics["generated_tokens_per_s"]["ci95"] is None
    assert metrics["generated_tokens_per_s"]["range"] == (32.0, 128.0)
    assert metrics["generated_tokens_per_s"]["n"] == 3
    assert metrics["preemptions"] == 3
    assert metrics["engines"] == {"n": 2, "generated_tokens": {"0": 192, "1": 192}}
    assert metrics["peak_memory_gib"] == {"0": 4.0, "1": 2.0}
    assert metrics["ttft_s"] == {"median": 0.5, "ci95": None, "range": (0.5, 0.5), "n": 3, "p99": 0.5}
    nothing = outcome.metrics_of([], {})
    assert nothing["generated_tokens_per_s"] is nothing["ttft_s"] is nothing["power_w"] is None


def test_identity_holds_what_a_bench_measures_and_nothing_else(as_bench: None) -> None:
    base = asked("vllm=server")
    for same in ("grpo.learning_rate=1", "data=gsm8k", "rewards=[boxed]", "peft=lora", "eval.problems=3", "name=x"):
        assert identity(asked("vllm=server", same)) == identity(base), same
    for other in ("bench.repeats=4", "seed=1", "vllm.tp=2", "model=qwen2.5-0.5b", "vllm.engine.max_num_seqs=8"):
        assert identity(asked("vllm=server", other)) != identity(base), other
    training = dataclasses.replace(base, kind="train")
    assert identity(training) != identity(base)
    more = dataclasses.replace(training, bench=BenchConfig(prompts=1))
    assert identity(more) == identity(training), "a training run is the same whatever a bench would do"


@pytest.mark.parametrize(
    ("machine", "overrides", "wanted"),
    [
        (with_gpus(8), ["vllm=server", "vllm.tp=2", "vllm.dp=2"], {"server_gpus": ("0", "1", "2", "3"), "gpus": 4}),
        (with_gpus(8), ["vllm=server", "gpus=[5,3]", "vllm.dp=2"], {"server_gpus": ("5", "3"), "trainer_gpus": ()}),
        (with_gpus(8), ["vllm=colocate", "vllm.tp=2"], {"trainer_gpus": ("0", "1"), "generating_devices": 2}),
        (with_gpus(8), ["vllm=off"], {"trainer_gpus": ("0",), "devices": 1}),
        (with_gpus(8), ["vllm=server", "vllm.url=http://h:1", "vllm.dp=2"], {"gpus": 0, "generating_devices": 2}),
        (ON_CPU, ["vllm=server", "vllm.dp=2"], {"gpus": 0, "devices": 2}),
    ],
)
def test_layouts(as_bench: None, machine: Machine, overrides: list[str], wanted: dict[str, Any]) -> None:
    plan = planned(machine, "model=qwen2.5-7b", *overrides)
    assert {key: getattr(plan, key) for key in wanted} == wanted


def test_a_colocated_engine_has_room_for_its_share(as_bench: None) -> None:
    two = ["bench.loads.a.prompts=10", "bench.loads.b={prompts:64,concurrency:7}", "bench.num_generations=4"]
    plan = planned(with_gpus(4), "model=qwen2.5-7b", "vllm=colocate", "vllm.tp=2", "vllm.dp=2", *two)
    assert plan.engine["max_num_seqs"] == 5 * 4
    assert [load.in_flight for load in plan.loads] == [10, 7]
    words = " ".join(plan.trainer[0].argv)
    assert "accelerate.commands.launch" in words
    assert "--num_processes=4" in words
    assert "grpo_lab.worker.bench" in words


def test_random_weights_are_not_written_for_vllm(as_bench: None, cache_folder: Path) -> None:
    """It makes them itself; a file is drawn where that was asked for, and for transformers."""
    random = ["model=qwen2.5-32b", "model.weights=random"]
    drawn = policy.random_folder(asked(*random).model)
    for overrides, shape in [
        (["vllm=server"], True),
        (["vllm=colocate"], True),
        (["vllm=server", "vllm.url=http://127.0.0.1:8000"], True),  # only its tokenizer is read
        (["vllm=server", "vllm.engine.load_format=auto"], False),
        ([], False),
    ]:
        plan = planned(with_gpus(1), *random, *overrides)
        assert plan.model_path == (f"{drawn}-shape" if shape else str(drawn))
        assert plan.prepare is not None
        assert (plan.prepare.argv[-1] == "shape") == shape
    assert planned(with_gpus(1), *random, "vllm=colocate").engine["load_format"] == "dummy"


def test_layouts_share_their_compile_cache(as_bench: None) -> None:
    """What vLLM and torch compile stays in its own place, the same for all, unless the user says otherwise."""
    for mode in ("server", "colocate"):
        plan = planned(with_gpus(4), "model=qwen2.5-7b", f"vllm={mode}", "vllm.tp=2")
        variables = {key for _, command in plan.commands() for key in command.env}
        assert not variables & {"VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "HOME"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vllm=server", "vllm.dp=8"], "need 8 GPUs, there are 4"),
        (["vllm=server", "nodes=2"], "one machine"),
        (["vllm=colocate", "vllm.sleep=true"], "vllm.sleep=false"),
        (["bench.prompt_len=200000"], "bench.completion_len of load default: 200512 tokens in all, and the context"),
        (["vllm=server", "vllm.max_model_len=700"], "1024 tokens in all, and vllm.max_model_len is 700"),
        (["vllm=colocate", "vllm.dp=4", "bench.concurrency=3"], "only 3 requests in flight"),
        (["vllm=server", "vllm.dp=4", "bench.prompts=3", "bench.num_generations=1"], "only 3 completions in flight"),
        (["vllm=server", "vllm.engine.disable_log_stats=true"], "needs vLLM's own counts"),
        (["seed=-1"], "seed=-1"),
        (["vllm.engine.hf_token=abc"], "vllm.engine.hf_token holds a secret"),
    ],
)
def test_what_cannot_work_is_refused(as_bench: None, overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        planned(with_gpus(4), "model=qwen2.5-7b", *overrides)


def test_a_point_needs_its_layouts_gpus_and_no_more(as_bench: None) -> None:
    for overrides, gpus in ((["vllm.tp=2"], 2), (["vllm.tp=2", "vllm.dp=2"], 4)):
        config = asked("model=qwen2.5-7b", "vllm=server", "dry_run=true", *overrides)
        need = need_of(config, dataclasses.replace(with_gpus(8), cores=16))
        assert need == Need(gpus=gpus, cores=2 * gpus)


DOCUMENTED = [
    shlex.split(line)[3:]
    for line in re.findall(r"^python -m grpo_lab\.bench.*$", (ROOT / "docs" / "bench.md").read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("words", DOCUMENTED, ids=" ".join)
def test_a_documented_command_plans(as_bench: None, words: list[str]) -> None:
    assert len(DOCUMENTED) == 3
    one = [re.sub(r"=(\w+)(,\w+)+$", r"=\1", word) for word in words if word != "--multirun"]
    assert planned(with_gpus(8), *one).gpus >= 1


def test_refusals_and_dry_run_on_the_command_line(tmp_path: Path) -> None:
    for words, message in (
        (["bench.promts=3"], "did you mean 'prompts'?"),
        (["bench.loads.a.prompt=3"], "did you mean 'prompt"),
        (["vllm=server", "vllm.url=http://8.8.8.8:8000"], "vllm.expose=true"),
        (["objective=generated_tokens_per_second"], "did you mean 'generated_tokens_per_s'?"),
    ):
        ended = bench(*words, f"runs_dir={tmp_path / 'runs'}")
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert message in ended.stderr
        assert len(ended.stderr.strip().splitlines()) <= 3
    told = bench("dry_run=true", "vllm=off", "vllm.env.MY_API_KEY=planted", f"runs_dir={tmp_path / 'runs'}")
    assert told.returncode == 0, told.stderr
    assert "planted" not in told.stdout
    assert "exclusive: one point of a sweep at a time" in told.stdout
    assert "grpo_lab.worker.bench" in told.stdout
    several = bench("--multirun", "dry_run=true", "vllm=off", "seed=1,2", f"runs_dir={tmp_path / 'runs'}")
    assert "2 points, one at a time (launcher.exclusive)" in several.stdout
    assert not (tmp_path / "runs").exists()


def test_the_command_itself_loads_no_heavy_package() -> None:
    program = (
        "import sys\nfrom grpo_lab.bench import main\ntry: main()\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'trl', 'vllm', 'aiohttp', 'pynvml')\n"
        "print('LOADED', [name for name in heavy if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "dry_run=true"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "LOADED []" in ended.stdout


def test_points_of_a_sweep_are_benches(tmp_path: Path) -> None:
    """Of transformers, with fixed and drawn lengths; the same command again runs nothing."""
    words = ["--multirun", f"runs_dir={tmp_path}", *OFF, "bench.warmup=0", "bench.completion_len=3,[2,4]"]
    ended = bench(*words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("bench-")
    names = [row["name"] for row in store.read_json(Sweep(folder).points)["points"]]
    results = [store.read_json(Run(folder / name).result) for name in names]
    for result, tokens in zip(results, (4 * 2 * 3, None), strict=True):
        assert (result["kind"], result["status"], result["steps"], result["warmup_steps"]) == (
            "bench",
            "finished",
            3,
            0,
        )
        assert result["metrics"] == result["loads"][0]["metrics"]
        assert not list(folder.rglob(".ballast"))
        assert result["metrics"]["generated_tokens_per_s"]["n"] == 3
        assert result["metrics"]["ttft_s"] is None
        assert result["metrics"]["startup_s"] > 0
        if tokens:
            assert result["metrics"]["engines"] == {"n": 1, "generated_tokens": {"0": 3 * tokens}}
    assert results[1]["loads"][0]["load"]["completion_len"] == [2, 4]
    again = bench(*words)
    assert "2 points: 2 finished before" in again.stdout
    rows = store.load(folder)
    assert [row["kind"] for row in rows] == ["bench", "bench"]
    assert OmegaConf.load(Run(folder / names[0]).config).kind == "bench"


def test_stopped_and_killed_it_leaves_no_process_and_the_same_command_measures_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "one")
    words = (*OFF, f"runs_dir={tmp_path}", "name=one", "bench.warmup=0", "bench.repeats=100000")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        began, deadline = time.time(), time.monotonic() + 200
        with subprocess.Popen(argv(words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while not measured_since(run, began) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(number)
            shown, _ = process.communicate(timeout=60)
        assert process.returncode == code, shown
        while carriers(RUN_VARIABLE, str(run.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not carriers(RUN_VARIABLE, str(run.folder))
        assert [row["step"] for row in run.rows()][:1] == [1]
        assert not run.result.exists()
        assert run.ballast.exists() == (number == signal.SIGKILL)
    other = bench(*words, "bench.repeats=2")
    assert other.returncode == 2
    assert "holds a run of another config" in other.stderr


def measured_since(run: Run, moment: float) -> bool:
    return bool(run.rows()) and run.metrics.stat().st_mtime > moment


def message(completion: int, tokens: int) -> bytes:
    """Of a stream, as vLLM sends it: so many tokens of one completion by now."""
    usage = {"prompt_tokens": 3, "completion_tokens": tokens}
    return b"data: %s\n\n" % json.dumps({"choices": [{"index": completion, "text": "a"}], "usage": usage}).encode()


def usage(prompt: int, completions: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completions}}


STREAM = b"".join(message(*one) for one in ((0, 1), (1, 1), (0, 3), (1, 4), (0, 4)))
LAST = b"data: %s\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], **usage(3, 8)}).encode()
ANSWERS = {
    "fewer tokens": (200, json.dumps(usage(3, 7)).encode(), "error", "(3, 7) tokens"),
    "another prompt": (200, json.dumps(usage(4, 8)).encode(), "error", "(4, 8) tokens"),
    "refused": (400, b"too long", "error", "answered 400 to /v1/completions: too long"),
    "engine dead": (500, b"EngineDeadError", "server_died", "answered 500"),
    "hung up": (None, b"", "server_died", "connection to the server broke"),
    "half a stream": (200, STREAM, "error", "without its usage"),
    "a token too few": (200, message(0, 4) + message(1, 3) + LAST, "error", "completions of [4, 3] tokens"),
    "broken off": (200, STREAM + b'data: {"error": "EngineDeadError"}\n\n', "server_died", "EngineDeadError"),
}
LOAD = Load("x", 1, 2, 3, 4, None, timed_every=1)


def test_what_a_server_answers_is_counted() -> None:
    from grpo_lab.worker.bench.client import Client

    for timed, body in ((True, STREAM + LAST), (False, json.dumps(usage(3, 8)).encode())):
        with answering(200, body) as url:
            client = Client(url)
            measured = client.measure([Request((1, 2, 3), 4, timed=timed)], LOAD)
        assert (client.model, client.kv_cache_tokens) == ("m", 16384)
        assert measured.tokens == 8
        assert measured.engines == {"0": 8, "1": 0}
        assert len(measured.arrivals.ttft_s) == (2 if timed else 0)
        assert len(measured.arrivals.itl_s) == (6 if timed else 0)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_not_what_was_asked_for(answer: str) -> None:
    """The client against a server that answers so; what it makes of it."""
    from grpo_lab.worker.bench.client import Client
    from grpo_lab.worker.bench.course import _class_of

    status, body, failure, said = ANSWERS[answer]
    with answering(status, body) as url:
        client = Client(url)
        with pytest.raises(Exception, match=re.escape(said)) as raised:
            client.measure([Request((1, 2, 3), 4, timed=b"data: " in body)], LOAD)
    assert _class_of(raised.value) == failure


@contextmanager
def answering(status: int | None, body: bytes) -> Iterator[str]:
    """A server whose completions are this answer; None hangs up."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            counted = METRICS.replace(" 640.0", " 648.0") if "/v1/completions" in asked else METRICS
            self.give(200, counted.encode() if self.path == "/metrics" else b'{"data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            if self.path != "/v1/completions":
                self.give(200, b"")
            elif status is not None:
                self.give(status, body)

        def give(self, code: int, content: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
