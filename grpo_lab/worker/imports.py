"""What a process that does not need vLLM leaves out."""

from __future__ import annotations

from trl import import_utils


def without_vllm() -> None:
    """Has to come before anything imports `trl.generation`.

    TRL 1.16 imports vLLM wherever it is installed, used or not, which makes a run wait twice as long for its start.
    """
    import_utils.is_vllm_available = lambda min_version=None: False
