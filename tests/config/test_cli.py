"""The command line: what is refused and how, what loads, from where it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import GSM8K, ROOT, cli

REFUSED = [
    (["model=tinny"], "did you mean 'tiny'?"),
    (["modle=tiny"], "did you mean 'model'?"),
    (["model.nmae=x"], "did you mean 'name'?"),
    (["rewards=[accurate]"], "did you mean 'accuracy'?"),
    (["rewards=[]"], "at least one reward"),
    (["rewards.length.weight=2"], "rewards.length has settings but is not chosen"),
    (["rewards.accuracy.timeout=2"], "did you mean 'timeout_s'?"),
    (["rewards.mine._target_=grpo_lab.rewards.acuracy"], "did you mean 'accuracy'?"),
    (["rewards.mine._target_=no.such.module"], "no module 'no.such'"),
    (["rewards.accuracy=null"], "~rewards.accuracy leaves it out"),
    (["rewards.accuracy.weight=null"], "rewards.accuracy.weight=null: must be a finite number"),
    (["rewards.accuracy.weight=nan"], "rewards.accuracy.weight=nan: must be a finite number"),
    (["seed=one"], "seed: Value 'one'"),
    (["grpo.learning_rat=1"], "did you mean 'learning_rate'?"),
    (["grpo.learning_rate=fast"], "GRPOConfig wants float"),
    (["grpo.loss_type=dapoo"], "did you mean 'dapo'?"),
    (["grpo.output_dir=x"], "set runs_dir= and name="),
    (["grpo.gradient_accumulation_steps=2"], "set grpo.generation_batch_size="),
    (["grpo.generation_batch_size=100"], "next ones: 96 or 104"),
    (["grpo.num_generations=1"], "at least 2"),
    (["data=gsm8k", "data.path=/nowhere"], "/nowhere"),
    (["data=gsm8k", "data.pth=x"], "did you mean 'path'?"),
    (["data.difficulty=99"], "difficulty=99"),
    (["data=custom"], "data._target_: a value is needed"),
    (["data=custom", "data._target_=tests.rows.empty"], "no rows"),
    (["data=custom", "data._target_=tests.rows.without_prompt"], "no column 'prompt'"),
    (["data=custom", "data._target_=tests.rows.nothing"], "defines no 'nothing'"),
    (["tracker.mode=onlin"], "did you mean 'online'?"),
    (["vllm.tp=2"], "need vllm=colocate or vllm=server"),
    (["gpus=99"], "gpus=99: this machine has"),
    (["model.path=./nowhere"], "no checkpoint there"),
    (["seed"], "an override is key=value"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_bad_input_is_refused_in_few_lines_and_leaves_nothing(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    ended = cli(*overrides, f"runs_dir={tmp_path}/runs")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stderr
    assert 1 <= len(ended.stderr.strip().splitlines()) <= 3
    assert ended.stderr.startswith("error: ")  # before it, Hydra would say which overrides failed
    assert not (tmp_path / "runs").exists()


def test_a_yaml_whose_key_is_null_is_refused(tmp_path: Path) -> None:
    """OmegaConf's error is its own cause, over a few others."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.yaml").write_text("? \n: 1\n")
    ended = cli("-cd", str(tmp_path), "rewards=[mine]", "dry_run=true", timeout_s=60)
    assert ended.returncode == 2
    assert "Incompatible key type" in ended.stderr


@pytest.mark.parametrize("overrides", [["dry_run=true"], ["--cfg", "job"], ["--help"], ["vllm=server", "dry_run=true"]])
def test_the_command_line_loads_no_heavy_package(overrides: list[str]) -> None:
    program = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from grpo_lab.train import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', [name for name in ('torch', 'transformers', 'trl', 'vllm') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *overrides], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ended.stdout.strip().splitlines()[-1] == "LOADED []"


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    ended = cli("dry_run=true", f"runs_dir={tmp_path}/runs")
    assert ended.returncode == 0, ended.stderr
    assert "grpo_lab.worker" in ended.stdout
    assert "completions a step" in ended.stdout
    assert not (tmp_path / "runs").exists()


def test_the_configuration_is_found_from_a_wheel_in_any_directory(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from grpo_lab.train import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(site), "dry_run=true"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert str(site / "grpo_lab" / "assets" / "tiny") in ended.stdout


def test_the_configuration_is_found_from_another_directory(tmp_path: Path) -> None:
    assert cli("dry_run=true", cwd=tmp_path).returncode == 0


def test_secrets_reach_no_file(tmp_path: Path) -> None:
    from grpo_lab.config.schema import Config, ModelConfig, VllmConfig
    from grpo_lab.store import folder as store

    config = Config(model=ModelConfig(name="x", path="y"), vllm=VllmConfig(env={"HF_TOKEN": "hf_verysecret"}))
    store.save_config(config, tmp_path / "config.yaml")
    assert "verysecret" not in (tmp_path / "config.yaml").read_text()


def test_gsm8k_is_where_the_tests_look_for_it() -> None:
    assert json.loads((GSM8K / "test.jsonl").open().readline())["answer"].endswith("#### 18")


def test_the_identity_of_a_config_is_that_of_earlier_runs(tmp_path: Path) -> None:
    """A run that an earlier version left is found again under the same name, unless what is asked has changed."""
    name = "tiny-arithmetic-off-d5879076ffba"
    assert name in cli("dry_run=true", f"runs_dir={tmp_path}").stdout
    asked = cli("dry_run=true", "rewards.accuracy.simplified=false", f"runs_dir={tmp_path}").stdout
    assert "tiny-arithmetic-off-" in asked
    assert name not in asked
