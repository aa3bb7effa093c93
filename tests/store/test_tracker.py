"""Trackers by effect: what was logged is read back with their own tools; secrets are nowhere on the disk."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from grpo_lab.config.errors import RequestError
from grpo_lab.config.redaction import redact, redact_text
from grpo_lab.config.schema import TrackerConfig
from grpo_lab.store.tracker import check, open_tracker
from tests.offline_wandb import history, wandb_records

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "hunter2-do-not-save"
ROWS: list[dict[str, float | int | str | None]] = [
    {"reward": 1 / 3, "kl": 1e-300, "tokens": 2**53 - 1, "phase": "wörm\n", "skipped": None},
    {"reward": -0.0, "kl": math.nan, "tokens": 0, "phase": "", "rewards/accuracy/mean": 0.1},
    {"reward": 1e18, "kl": math.inf, "tokens": -7, "phase": "x" * 3000, "rewards/accuracy/mean": 1},
]
SCENARIO = """
import json, sys
from pathlib import Path
from grpo_lab.config.schema import TrackerConfig
from grpo_lab.store.tracker import open_tracker

kind, folder, secret, rows = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])

def start(run_id):
    return open_tracker(
        TrackerConfig(kind=kind),
        folder=folder,
        run_id=run_id,
        name="tp=2,seed=1",
        group="sweep",
        tags=["a", "b"],
        config={"model": {"path": "m", "hf_token": secret}, "command": f"train x.api_key={secret}"},
    )

tracker = start("first")
for step, row in enumerate(rows, 1):
    tracker.log(row, step)
tracker.finish({"accuracy_after": 0.75, "step_time_s": {"median": 1.5, "n": 3}}, 3)
again = start("first")
again.log({"reward": 4.0}, 4)
other = start("second")  # without a finish before
other.log({"reward": 5.0}, 1)
other.finish({}, 0)
print(tracker.how_to_look())
"""


def run_scenario(kind: str, home: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that knows no key, with `home` for its caches."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "HF_"))}
    clean |= {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), **environment}
    argv = [sys.executable, "-c", SCENARIO, kind, str(folder), SECRET, json.dumps(ROWS)]
    return subprocess.run(argv, env=clean, capture_output=True, text=True, timeout=120, check=True)


def assert_nowhere(text: str, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [str(path) for path in files if text.encode() in path.read_bytes()] == []


@pytest.fixture(scope="module")
def wandb_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def wandb_run(wandb_home: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = wandb_home / "a run"
    return folder, run_scenario("wandb", wandb_home, folder)


def as_json(value: float | int | str | None) -> float | int | str | None:
    """JSON has no NaN; wandb and trackio write the words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def expected_rows() -> dict[int, dict[str, Any]]:
    return {
        step: {key: as_json(value) for key, value in row.items() if value is not None}
        for step, row in enumerate(ROWS, 1)
    }


def test_wandb_offline_holds_every_value(wandb_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    records = wandb_records(wandb_run[0], "first")[0]
    assert history(records) == expected_rows()
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["run_id"], run["display_name"], run["run_group"]) == ("first", "tp=2,seed=1", "sweep")
    assert (run["project"], run["tags"]) == ("grpo-lab", ["a", "b"])
    assert run["config"]["update"]["model"] == {"path": "m", "hf_token": "***"}
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record["summary"].get("update", {}) if record["type"] == "summary" else {}
    assert (summary["accuracy_after"], summary["step_time_s"]) == (0.75, {"median": 1.5, "n": 3})
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [3]


def test_wandb_continues_a_run_under_the_same_id(
    wandb_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    first, again = wandb_records(wandb_run[0], "first")
    assert list(history(first)) == [1, 2, 3]
    assert history(again) == {4: {"reward": 4.0}}


def test_wandb_never_returns_another_live_run(
    wandb_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    (records,) = wandb_records(wandb_run[0], "second")
    assert history(records) == {1: {"reward": 5.0}}


def test_wandb_is_silent_and_saves_no_secret_and_no_code(
    wandb_run: tuple[Path, subprocess.CompletedProcess[str]], wandb_home: Path
) -> None:
    folder, process = wandb_run
    assert process.stderr == ""
    files = f"'{folder}/wandb'"
    expected = f"W&B (offline): wandb leet {files}   upload: wandb sync {files}/offline-run-*"
    assert process.stdout.splitlines() == [expected]
    assert_nowhere(SECRET, wandb_home)
    saved = {path.name for path in folder.glob("wandb/offline-run-*/files/**/*") if path.is_file()}
    assert saved <= {"config.yaml", "wandb-summary.json"}


def test_trackio_holds_every_value_and_stays_local(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="an optional tracker")
    data = tmp_path / "trackio"
    unreachable = {
        "TRACKIO_DIR": str(data),
        "TRACKIO_SERVER_URL": "http://127.0.0.1:9",
        "TRACKIO_SPACE_ID": "no/where",
    }
    process = run_scenario("trackio", tmp_path, tmp_path / "run", **unreachable)
    assert process.stdout.splitlines() == [f"trackio: TRACKIO_DIR={data} trackio show --project grpo-lab"]
    with sqlite3.connect(data / "grpo-lab.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = database.execute("select config from configs").fetchall()
    by_run: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for name, step, metrics in rows:
        by_run.setdefault(name, []).append((step, json.loads(metrics)))
    final = {"final/accuracy_after": 0.75, "final/exit_code": 3}
    expected = [*expected_rows().items(), (3, final), (4, {"reward": 4.0})]
    assert by_run["tp=2,seed=1 (first)"] == expected
    assert by_run["tp=2,seed=1 (second)"] == [(1, {"reward": 5.0}), (1, {"final/exit_code": 0})]
    assert json.loads(configs[0][0])["tags"] == ["a", "b"]
    assert_nowhere(SECRET, tmp_path)


@pytest.mark.parametrize("settings", [TrackerConfig(kind="none"), TrackerConfig(mode="disabled")])
def test_no_tracker_writes_nothing(settings: TrackerConfig, tmp_path: Path) -> None:
    tracker = open_tracker(settings, folder=tmp_path / "run", run_id="x", name="x", group=None, tags=[], config={})
    tracker.log({"reward": 1.0}, 1)
    tracker.finish({}, 0)
    assert "metrics.jsonl" in tracker.how_to_look()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_")) or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_online_without_a_key_is_refused_at_once(no_key: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"WANDB_API_KEY.*tracker\.mode=offline") as refusal:
        check(TrackerConfig(mode="online"))
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("where", ["environment", "netrc", "own server"])
def test_online_with_a_key_passes(where: str, no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = "wandb.example.org:8080" if where == "own server" else "api.wandb.ai"
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        (no_key / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
        (no_key / ".netrc").chmod(0o600)
    if where == "own server":
        with pytest.raises(RequestError):
            check(TrackerConfig(mode="online"))
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}")
    check(TrackerConfig(mode="online"))


def test_trackio_online_needs_a_destination(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="an optional tracker")
    with pytest.raises(RequestError, match=r"tracker\.space_id=owner/name"):
        check(TrackerConfig(kind="trackio", mode="online"))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    check(TrackerConfig(kind="trackio", mode="online"))
    monkeypatch.delenv("TRACKIO_SPACE_ID")
    check(TrackerConfig(kind="trackio", mode="online", space_id="me/rows"))
    with pytest.raises(RequestError, match=r"tracker\.space_id=me/rows: a Space needs tracker=trackio"):
        check(TrackerConfig(kind="trackio", mode="offline", space_id="me/rows"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TrackerConfig(kind="wandbb"), r"tracker\.kind=wandbb: did you mean 'wandb'"),
        (TrackerConfig(mode="on"), r"tracker\.mode=on: "),
    ],
)
def test_an_unknown_choice_is_refused(settings: TrackerConfig, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check(settings)


def test_check_imports_no_tracker() -> None:
    code = (
        "import sys; from grpo_lab.config.schema import TrackerConfig; from grpo_lab.store.tracker import check\n"
        "check(TrackerConfig()); print(sorted({'wandb', 'trackio', 'torch'} & set(sys.modules)))"
    )
    argv = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", ["wandb", "trackio", "none"])
def test_shipped_yaml_fits_the_schema(kind: str) -> None:
    composed = OmegaConf.merge(
        OmegaConf.structured(TrackerConfig), OmegaConf.load(REPOSITORY / f"conf/tracker/{kind}.yaml")
    )
    assert OmegaConf.to_object(composed) == TrackerConfig(kind=kind)


@pytest.mark.parametrize(
    "key",
    [
        "hf_token",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "apiKey",
        "AWS_SECRET_ACCESS_KEY",
        "hub-token",
        "token",
        "key",
        "password",
    ],
)
def test_values_of_secret_keys_are_replaced(key: str) -> None:
    config = {key: SECRET, "deep": [{key: SECRET}], "under": {key: {"a": [SECRET]}}}
    assert SECRET not in json.dumps(redact(config))
    assert SECRET not in redact_text(f"train a=1 x.{key}={SECRET} b=2")
    assert SECRET not in json.dumps(redact({"argv": ["serve", f"--{key}", SECRET, f"--{key}={SECRET}"]}))


def test_secrets_are_found_by_their_form() -> None:
    config = {
        "note": "uses hf_abcdefghijklmnopqrstuvwx and sk-proj-abcdefghijklmnopqrst.",
        "url": "http://bob:hunter2@host:80/v1?a=b",
    }
    assert redact(config) == {"note": "uses *** and ***.", "url": "http://***@host:80/v1?a=b"}


def test_everything_else_stays_as_it_is() -> None:
    config = {
        "max_tokens": 512,
        "eos_token": "</s>",
        "pad_token": None,
        "tokenizer": "qwen",
        "answer_key": "solution",
        "importance_sampling_level": "token",
        "token": None,
        "argv": ["serve", "Qwen/Qwen2.5-7B", "--max-num-batched-tokens=8192", "--max-tokens", "5", "lr=1e-6"],
        "path": "/data/a=b@c/d",
        "nested": {"keys": [1, 2], "flag": True, "lr": 1e-6},
    }
    before = json.dumps(config)
    assert redact(config) == config
    assert json.dumps(config) == before
