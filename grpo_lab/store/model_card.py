"""The model card of a run's policy, from what the run left: what it is, how well it does, how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_lab.config import compose as configuration
from grpo_lab.config.schema import Config
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.planner.modes import mode
from grpo_lab.store import measures, stats
from grpo_lab.store.estimates import Estimate, estimate
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.markdown import table
from grpo_lab.store.records import Env, Result, must_read

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

VERSIONS = ("grpo-lab", "trl", "transformers", "torch", "vllm", "peft", "accelerate", "datasets", "python")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

CITATION = """\
```bibtex
@article{shao2024deepseekmath,
    title  = {{DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models}},
    author = {Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and Bi, Xiao and
              Zhang, Haowei and Zhang, Mingchuan and Li, Y. K. and Wu, Y. and Guo, Daya},
    year   = 2024,
    eprint = {arXiv:2402.03300}
}
```"""


def card(run: Run) -> str:
    """The README.md of a finished run's policy, as the Hub reads it."""
    config, result, env = configuration.load(run.config), must_read(run.result, Result), must_read(run.env, Env)
    trainer = algorithm(config.algorithm.kind).card
    about = (
        f"[{config.model.name}]({_link(config)}) trained" if _base(config) else f"{config.model.name} trained"
    ) + f" for {result.steps} steps with {trainer} by [TRL](https://github.com/huggingface/trl), seed {config.seed}."
    return (
        "\n\n".join(
            [
                f"---\n{_metadata(run.folder.name, config, result.metrics).to_yaml()}\n---",
                f"# {run.folder.name}",
                about,
                "## Results\n\n" + _results(result.metrics),
                "Held-out pass@1 is one completion a problem, sampled at the training temperature; intervals are 95%,"
                f" of fewer than {stats.LEAST} times their range. Times leave out the first"
                f" {result.warmup_steps} steps. {stats.WITHIN_A_RUN}",
                "## Data\n\n" + _data(config, result.data or {}),
                "## Rewards\n\n" + _rewards(config),
                f"## How\n\n```\n{env.command}\n```\n\n" + _made(result, env),
                f"<details><summary>config.yaml</summary>\n\n```yaml\n{run.config.read_text(encoding='utf-8')}```\n\n"
                "</details>",
                "## Citation\n\nGRPO:\n\n" + CITATION,
            ]
        )
        + "\n"
    )


def _base(config: Config) -> str | None:
    """The hub id of the model that training started from; None for a local one and for random weights."""
    path = config.model.path
    known = config.model.weights == "pretrained" and _HUB_ID.fullmatch(path) and not Path(path).exists()
    return path if known else None


def _link(config: Config) -> str:
    return f"https://huggingface.co/{_base(config)}"


def _metadata(name: str, config: Config, metrics: Mapping[str, Any]) -> ModelCardData:
    """What the Hub reads of a card: the base model, and the held-out pass@1 that it shows beside the model."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        base_model=_base(config),
        eval_results=_evaluated(config, metrics),
        library_name="transformers" if config.peft.kind == "none" else "peft",
        model_name=name,
        pipeline_tag="text-generation",
        tags=[config.algorithm.kind.replace("_", "-"), "trl", "reinforcement-learning", "grpo-lab"],
    )


def _evaluated(config: Config, metrics: Mapping[str, Any]) -> list[EvalResult] | None:
    """The accuracy after training on the held-out data; None where it was not measured."""
    from huggingface_hub import EvalResult

    measure = measures.named("train", "accuracy_after")
    measured = measure.field(metrics)
    if measured is None:
        return None
    name = str(config.data["_target_"]).rpartition(".")[2]
    hub = config.data.get("hub_id") if config.data.get("path") is None else None
    result = EvalResult(
        task_type="text-generation",
        dataset_type=hub or name,
        dataset_name=name,
        dataset_config=config.data.get("hub_config") if hub else None,
        dataset_split=config.data.get("test"),
        dataset_revision=config.data.get("revision") if hub else None,
        metric_type="pass@1",
        metric_value=measured["value"],
        metric_name=measure.card,
    )
    return [result]


def _results(metrics: Mapping[str, Any]) -> str:
    named = [measure for measure in measures.MEASURES["train"] if measure.card]
    rows = [[measure.card, *_cells(value)] for measure in named if (value := estimate(measure.field(metrics)))]
    return table(["", "value", "95% interval, or range", "n"], rows)


def _cells(measured: Estimate) -> list[str]:
    low, high = measured.low, measured.high
    interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
    return [f"{measured.value:.4g}", interval, str(measured.n or "")]


def _data(config: Config, counted: Mapping[str, Mapping[str, int]]) -> str:
    asked = [[f"`{key}`", f"`{value}`"] for key, value in config.data.items()]
    rows = [[f"rows, {split}", f"{count['rows']} ({count['too_long']} too long)"] for split, count in counted.items()]
    return table(["", ""], [*asked, *rows])


def _rewards(config: Config) -> str:
    def row(name: str, settings: Row) -> list[str]:
        others = {key: value for key, value in settings.items() if key not in ("_target_", "weight")}
        return [name, f"{settings.get('weight', 1.0):g}", f"`{settings['_target_']}`", f"`{others}`" if others else ""]

    rows = [row(name, settings) for name, settings in config.rewards.items()]
    return table(["reward", "weight", "function", "parameters"], rows)


def _made(result: Result, env: Env) -> str:
    where = f"{result.gpus} of {len(env.gpus)} GPUs" if env.gpus else f"{env.cores} cores, {env.processor}"
    installed = {**env.versions, "python": env.python}
    versions = ", ".join(f"{name} {installed[name]}" for name in VERSIONS if installed.get(name))
    generation = mode(result.vllm_mode).generator(result.tp, result.dp)
    return "\n".join(
        [
            f"- generation: {generation}",
            f"- hardware: {where}",
            f"- versions: {versions}",
            f"- commit of the harness: {env.git_commit or 'unknown'}",
        ]
    )
