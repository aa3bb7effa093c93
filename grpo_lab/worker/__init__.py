"""The only place that imports torch and TRL: a run folder in, a trained policy and its metrics out.

Started as `python -m grpo_lab.worker <run folder>`, once for each process of the trainer.
"""
