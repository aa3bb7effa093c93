"""The model card of a run's policy, from what the run left: what it is, how well it does, how it was made."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import OmegaConf

from grpo_lab.config import schema as configuration
from grpo_lab.config.schema import Config
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.markdown import table

TRAINERS = {"grpo": "GRPO", "rloo": "RLOO", "online_dpo": "online DPO", "async_grpo": "asynchronous GRPO"}
VERSIONS = ("grpo-lab", "trl", "transformers", "torch", "vllm", "peft", "accelerate", "datasets", "python")
MEASURED = {
    "accuracy_before": "held-out pass@1 before training",
    "accuracy_after": "held-out pass@1 after training",
    "accuracy_gain": "gain, paired over the same problems",
    "reward_last": "mean reward of the last tenth of the steps",
    "step_time_s": "seconds a step, median",
    "tokens_per_s_per_gpu": "completion tokens a second and GPU (without one: process), median",
}
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
    config, result, env = configuration.load(run.config), store.read_json(run.result), store.read_json(run.env)
    trainer = TRAINERS[config.algorithm.kind]
    about = (
        f"[{config.model.name}]({_link(config)}) trained" if _base(config) else f"{config.model.name} trained"
    ) + f" for {result['steps']} steps with {trainer} by [TRL](https://github.com/huggingface/trl), seed {config.seed}."
    return (
        "\n\n".join(
            [
                f"---\n{OmegaConf.to_yaml(_metadata(config))}---",
                f"# {run.folder.name}",
                about,
                "## Results\n\n" + _results(result["metrics"]),
                "Held-out pass@1 is one completion a problem, sampled at the training temperature; intervals are 95%"
                " (Wilson's, of the gain and of times bootstrap). Times leave out the first"
                f" {result['warmup_steps']} steps.",
                "## Data\n\n" + _data(config, result.get("data") or {}),
                "## Rewards\n\n" + _rewards(config),
                f"## How\n\n```\n{env['command']}\n```\n\n" + _made(result, env),
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


def _metadata(config: Config) -> Row:
    base = _base(config)
    return {
        "library_name": "transformers" if config.peft.kind == "none" else "peft",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base else {}),
        "tags": [config.algorithm.kind.replace("_", "-"), "trl", "reinforcement-learning", "grpo-lab"],
    }


def _results(metrics: Row) -> str:
    rows = [[text, *_cells(metrics[name])] for name, text in MEASURED.items() if metrics.get(name)]
    return table(["", "value", "95% interval", "n"], rows)


def _cells(measured: Row) -> list[str]:
    value, interval = measured.get("value", measured.get("median")), measured.get("ci95")
    return [f"{value:.4g}", "{:.4g} to {:.4g}".format(*interval) if interval else "", str(measured["n"])]


def _data(config: Config, counted: Row) -> str:
    asked = [[f"`{key}`", f"`{value}`"] for key, value in config.data.items()]
    rows = [[f"rows, {split}", f"{count['rows']} ({count['too_long']} too long)"] for split, count in counted.items()]
    return table(["", ""], [*asked, *rows])


def _rewards(config: Config) -> str:
    def row(name: str, settings: Row) -> list[str]:
        others = {key: value for key, value in settings.items() if key not in ("_target_", "weight")}
        return [name, f"{settings.get('weight', 1.0):g}", f"`{settings['_target_']}`", f"`{others}`" if others else ""]

    rows = [row(name, settings) for name, settings in config.rewards.items()]
    return table(["reward", "weight", "function", "parameters"], rows)


def _made(result: Row, env: Row) -> str:
    gpus = env.get("gpus") or []
    where = f"{result['gpus']} of {len(gpus)} GPUs" if gpus else f"{env['cores']} cores, {env['processor']}"
    versions = ", ".join(f"{name} {env[name]}" for name in VERSIONS if env.get(name))
    generation = "transformers"
    if result["vllm_mode"] != "off":
        generation = f"vLLM {result['vllm_mode']}, tp={result['tp']} dp={result['dp']}"
    return "\n".join(
        [
            f"- generation: {generation}",
            f"- hardware: {where}",
            f"- versions: {versions}",
            f"- commit of the harness: {env.get('git_commit') or 'unknown'}",
        ]
    )
