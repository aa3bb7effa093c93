"""TRL's GRPOTrainer, whose losses make most of the algorithms in conf/algorithm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_lab.config import upstream
from grpo_lab.config.model import Shape
from grpo_lab.config.schema import Config
from grpo_lab.planner.algorithms.base import Algorithm

BY_LENGTH = ("bnpo", "dr_grpo", "dapo", "cispo")
"""Losses that weight the sequence-level ratios of GSPO (arXiv:2507.18071) by length."""


class Grpo(Algorithm):
    kind, card = "grpo", "GRPO"
    config_classes = upstream.GRPO

    def grouped(self, config: Config, shape: Shape | None) -> str | None:
        grpo = config.grpo
        if grpo.get("loss_type") == "bnpo":
            return "grpo.loss_type=bnpo: divides by the tokens of each pass"
        if grpo.get("top_entropy_quantile", 1.0) < 1.0:
            return f"grpo.top_entropy_quantile={grpo['top_entropy_quantile']}: is a quantile of each pass"
        if grpo.get("entropy_coef") or grpo.get("use_adaptive_entropy"):
            return "grpo.entropy_coef: the bonus is a mean over each pass"
        if shape is not None and shape.experts and grpo.get("router_aux_loss_coef") != 0:
            return f"model={config.model.name}: the experts' load-balancing loss is of each pass"
        if grpo.get("torch_compile"):
            return "grpo.torch_compile=true: compiles for each width"
        return None

    def notes(self, config: Config) -> Iterator[str]:
        loss = config.grpo.get("loss_type", "dapo")
        if config.grpo.get("importance_sampling_level") == "sequence" and loss in BY_LENGTH:
            yield f"grpo.loss_type={loss} weights sequence-level ratios by length; GSPO's own is grpo (algorithm=gspo)"

    def banner(self, grpo: Mapping[str, Any]) -> str | None:
        changed = [f"{key}={grpo[key]}" for key in ("loss_type", "importance_sampling_level") if key in grpo]
        return f"{self.kind}, {', '.join(changed)}" if changed else None

    def suffix(self) -> str:
        return ""


ALGORITHM = Grpo()
