"""Parts of `python -m grpo_lab.bench`: what was asked, what was decided, what came out."""
