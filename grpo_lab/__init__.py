"""grpo-lab: GRPO experiments with TRL and vLLM, from one command to an honest table."""

__version__ = "0.1.0"
