"""Names of sweeps and points: the same command gives the same names, so that it finds what it did before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

LONGEST = 120
"""Characters of a point's name; a file name may have 255, and other files are named after it."""
_ASIDE = ("launcher", "sweep", "tracker", "timeouts", "runs_dir", "name", "resume", "dry_run", "objective")


def sweep_name(name: str | None, overrides: Sequence[str], axes: Collection[str] | None = None) -> str:
    """Folder of a sweep: what the user called it, or else what is swept, and a hash of what is not.

    Values that are swept do not count: a sweep over more seeds is the same sweep, with more points. `axes`: keys that
    an experiment sweeps by itself (`hydra.sweeper.params`); a single value of such a key is the same sweep, smaller.
    """
    if name:
        return name
    parsed = [override for override in _parse(overrides) if override.key_or_group.partition(".")[0] not in _ASIDE]
    parsed = [override for override in parsed if override.key_or_group not in (axes or ())]
    swept = sorted(override.key_or_group for override in parsed if override.is_sweep_override())
    fixed = sorted(plain(override) for override in parsed if not override.is_sweep_override())
    digest = hashlib.sha256("\n".join([*swept, "", *fixed]).encode()).hexdigest()[:6]
    experiment = next((text.partition("=")[2] for text in fixed if text.startswith("experiment=")), None)
    return f"{label([experiment or ','.join(swept) or 'sweep'])}-{digest}"


def fixed_overrides(overrides: Sequence[str], axes: Collection[str] | None = None) -> set[str]:
    """Overrides of a multirun that are the same for every point, as Hydra's sweepers write them.

    `axes` are left out, keys that an experiment sweeps by itself: points are named after them whatever their values.
    """
    parsed = [override for override in _parse(overrides) if override.key_or_group not in (axes or ())]
    return {plain(override) for override in parsed if not override.is_sweep_override()}


def plain(override: Override) -> str:
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def label(overrides: Sequence[str]) -> str:
    """A readable file name for a set of overrides."""
    text = re.sub(r"[^\w.=,+-]", "_", ",".join(overrides))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 9]}-{digest}"


def _parse(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))
