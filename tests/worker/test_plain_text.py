"""A model without a chat template is asked in plain text, in training and in evaluations."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from grpo_lab.conductor import models
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import ModelConfig
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, cli
from tests.planner.test_plan import asked


def test_a_model_without_a_chat_template_trains_on_messages(runs: Path, tmp_path: Path) -> None:
    model = tmp_path / "plain"
    shutil.copytree(str(files("grpo_lab") / "assets" / "tiny"), model)
    (model / "chat_template.jinja").unlink()
    ended = cli(*SHORT, "model=path", f"model.path={model}", f"runs_dir={runs}", "name=plain")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = Run(runs / "plain")
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4]
    assert run.worker_log.read_text().count("prompts are asked in plain text") == 2
    assert models.has_chat_template(ModelConfig(name="plain", path=str(model))) is False


def test_a_trainer_that_needs_a_chat_template_refuses_plain_text() -> None:
    assert models.has_chat_template(ModelConfig(name="tiny", path="asset:tiny")) is True
    trainer = algorithm("async_grpo")
    trainer.check_prompts(asked(), in_plain_text=False)
    with pytest.raises(RequestError, match="the prompts of tiny are plain text; a model with a chat template"):
        trainer.check_prompts(asked(), in_plain_text=True)
