"""Parts of `python -m grpo_lab.evaluate`: what was asked, what was decided, what came out."""
