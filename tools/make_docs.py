"""The pages of docs/ that list what there is to choose, from the YAMLs and what they name.

`python -m tools.make_docs` writes the pages again after a change to a YAML or a docstring.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from grpo_lab.config import model as policy
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import ModelConfig
from grpo_lab.store import measures
from grpo_lab.store.markdown import table
from grpo_lab.store.measures import Measure

DOCS = CONF.parent / "docs"
MADE = "<!-- Made by python -m tools.make_docs from conf/; change the YAML, not this page. -->"

Choice = dict[str, Any]
"""A YAML as composed by Hydra, without the group's own level."""


def pages() -> dict[str, str]:
    """File name below docs/ -> content."""
    return {
        "models.md": _models(),
        "data.md": _functions("data", "Data sets", "`data=NAME`, and its parameters as `data.PARAMETER=`."),
        "rewards.md": _functions(
            "rewards", "Rewards", "`rewards=[NAME,NAME]`, and their parameters as `rewards.NAME.PARAMETER=`."
        ),
        "algorithms.md": _page(
            "Algorithms",
            "`algorithm=NAME`. Each is the differences from `algorithm=grpo`, which any override beats; `grpo.*` are"
            " fields of the config of the trainer that it names.",
            _settings("algorithm"),
        ),
        "adapters.md": _page(
            "Adapters and sharding",
            "`peft=NAME`; `peft.options.*` are fields of peft's `LoraConfig`. What does not go together with a vLLM"
            " mode or a sharding is refused with the reason.",
            _settings("peft"),
            "`distributed=NAME`: how the processes of the trainer share the model.",
            _settings("distributed"),
        ),
        "results.md": results(),
    }


def results() -> str:
    """The fields of result.json: those of its records, and the metrics of each kind of run."""
    head = ["field", "column of table.csv", "unit", "holds", "meaning", "better", "objective"]
    parts = [
        *_record("Fields", "Result"),
        *_record("`failure`", "Failure"),
        *("## `metrics` of a training run", table(head, map(_metric_row, measures.MEASURES["train"]))),
        *("## `metrics` of each load of a bench", table(head, map(_metric_row, measures.MEASURES["bench"]))),
        *_record("`evaluations/*/result.json`", "EvaluationResult"),
    ]
    text = (
        "`result.json` is written last: its presence means that the run has ended. `median` and `value` stand with"
        " `ci95`, the [95% interval](intervals.md) (of a median null below n = 6; `range` has the least and the"
        " largest), and `n`, what it was measured on. Medians are over the steps or rounds after the warm-up;"
        " the parts `time_s.*` of a step add up to it. A metric that was not measured"
        " is null. An objective is what `objective=` can name for a sweeper."
        "\n\nRuns of an older version are read: a field that it did not write is null or has its default. A field that"
        " this version does not know was written by a newer one; the file is refused by the field's name, and a report"
        " leaves the run out."
    )
    made = MADE.replace("conf/; change the YAML", "grpo_lab/store/measures.py and records.py; change them")
    return "\n\n".join(["# Results", made, text, *parts]) + "\n"


def _record(title: str, name: str) -> list[str]:
    rows = [[f"`{field}`", text] for field, text in field_docs(f"grpo_lab.store.records.{name}").items()]
    return [f"## {title}", table(["field", "meaning"], rows)]


def field_docs(target: str) -> dict[str, str]:
    """Field of a dataclass -> the docstring under it, on one line; names as in its file."""
    record = _definition(target)
    assert record is not None
    return {
        field.target.id.rstrip("_"): " ".join(text.value.value.split())
        for field, text in pairwise(record.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _metric_row(measure: Measure) -> list[str]:
    """A measure that is one over another has a column only."""
    field, column = f"`{'.'.join(measure.keys)}`", f"`{measure.name}`" if measure.csv else ""
    rest = [measure.better or "", "yes" if measure.objective else ""]
    if measure.inverse_of:
        return ["", column, measure.unit, "", f"one over `{measure.inverse_of}`", *rest]
    return [field, column, measure.unit, measure.form.text, measure.meaning, *rest]


def _settings(group: str) -> str:
    """A row for every choice: what its YAML sets, and its comment."""
    rows = [[name, _set_by(group, name), _comment(group, name)] for name in _names(group)]
    return table([f"`{group}=`", "sets", ""], rows)


def _set_by(group: str, name: str) -> str:
    whole = any("@package _global_" in line for line in _lines(group, name))
    content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    return ", ".join(f"`{key}={value}`" for key, value in _flat(content if whole else {group: content}))


def _flat(node: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and the values of the leaves, as an override has them."""
    if not isinstance(node, dict):
        yield above, node if isinstance(node, str) else json.dumps(node)
        return
    for key, value in node.items():
        yield from _flat(value, f"{above}.{key}" if above else str(key))


def _models() -> str:
    columns = ["`model=`", "checkpoint", "parameters", "layers", "hidden", "heads", "kv heads", "head size"]
    columns += ["vocabulary", "context", "embeddings"]
    models = {name: ModelConfig(**choice) for name, choice in _choices("model").items() if choice["path"] != "???"}
    rows = [_model_row(name, models[name]) for name in sorted(models, key=lambda name: _model_order(name, models))]
    notes = [f"- `model={name}`: {note}" for name in _names("model") if (note := _comment("model", name))]
    text = (
        "`model=` takes a name of this list, a folder as `save_pretrained` leaves it (`model=./my_model`), or a hub id"
        " (`model=Qwen/Qwen2.5-7B-Instruct`, which takes its entry here), in every command, sweep and experiment."
        " Before anything starts the folder has weights and a tokenizer that fits them, or the hub has the model"
        " and gives it; otherwise the run is refused as `bad_model`, with the nearest folder or name. Nothing is asked"
        " of the hub for a model that is whole on this machine, or by `dry_run=true`.\n\n"
        "Each takes `model.weights=random` (its architecture and vocabulary with random weights: the same speed without"
        " a download), `model.revision=`, `model.dtype=`, `model.attn=` and `model.trust_remote_code=true`. In"
        " brackets: how many parameters of a mixture of experts work on a token."
    )
    return _page("Models", text, table(columns, rows), "\n".join(notes))


def _model_order(name: str, models: dict[str, ModelConfig]) -> tuple[str, int, str]:
    return name.split("-")[0], policy.parameters(models[name]) or 0, name


def _model_row(name: str, model: ModelConfig) -> list[str]:
    shape, total, active = policy.shape(model), policy.parameters(model), policy.active_parameters(model)
    assert shape is not None
    assert total is not None
    return [
        name,
        model.path,
        f"{total:,}" + (f" ({active:,})" if active != total else ""),
        *map(str, (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim)),
        f"{shape.vocab:,}",
        f"{shape.context:,}",
        "tied" if shape.tied else "apart",
    ]


def _functions(group: str, title: str, text: str) -> str:
    """A section for every choice: its comment, its function's first paragraph, its parameters."""
    return _page(title, text, *(_section(group, name, choice) for name, choice in _choices(group).items()))


def _section(group: str, name: str, choice: Choice) -> str:
    target, notes = choice.pop("_target_"), _line_comments(group, name)
    function = None if target == "???" else _definition(target)
    about = ast.get_docstring(function) if function else None
    types = _types(function) if isinstance(function, ast.FunctionDef) else {}
    rows = [[f"`{key}`", types.get(key, ""), _shown(value), notes.get(key, "")] for key, value in choice.items()]
    parts = [
        f"## {name}",
        _comment(group, name),
        f"`{target}`: {_first_paragraph(about)}" if about else "",
        table(["parameter", "type", "unless given", ""], rows) if rows else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _definition(target: str) -> ast.FunctionDef | ast.ClassDef | None:
    """What a dotted path names, found in the source without importing it, through re-exports; None if it is not."""
    module, _, name = target.rpartition(".")
    spec = find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return None
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    above = package.split(".")[: 1 - node.level or None] if node.level else []
                    return _definition(".".join([*above, *filter(None, [node.module]), alias.name]))
    return None


def _types(function: ast.FunctionDef) -> dict[str, str]:
    """Parameter -> annotation as written."""
    parameters = [*function.args.args, *function.args.kwonlyargs]
    return {item.arg: f"`{ast.unparse(item.annotation)}`" for item in parameters if item.annotation}


def _first_paragraph(text: str) -> str:
    return _prose(" ".join(text.split("\n\n")[0].split()))


def _prose(text: str) -> str:
    """Tags outside of code are text, not HTML."""
    return "`".join(part if code % 2 else part.replace("<", "&lt;") for code, part in enumerate(text.split("`")))


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _choices(group: str) -> dict[str, Choice]:
    """Name -> the YAML, with its defaults list followed and nothing resolved."""
    found = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in _names(group):
            node = compose(f"{group}/{name}")[group]
            content = OmegaConf.to_container(node if group != "rewards" else next(iter(node.values())))
            assert isinstance(content, dict)
            found[name] = {str(key): value for key, value in content.items()}
    return found


def _lines(group: str, name: str) -> list[str]:
    return (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()


def _comment(group: str, name: str) -> str:
    """What the YAML's first lines say."""
    kept = []
    for line in _lines(group, name):
        if not line.startswith("#"):
            break
        if "@package" not in line:
            kept.append(line.removeprefix("#").strip())
    return _prose(" ".join(kept))


def _line_comments(group: str, name: str) -> dict[str, str]:
    """Key -> the comment behind its value."""
    matches = (re.match(r"(\w+):.*?\s# (.*)$", line) for line in _lines(group, name))
    return {match[1]: _prose(match[2]) for match in matches if match}


def _shown(value: Any) -> str:
    if value == "???":
        return "needed"
    if isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()):
        return ", ".join(f"`{part}`" for part in value)
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", MADE, *parts]) + "\n"


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
