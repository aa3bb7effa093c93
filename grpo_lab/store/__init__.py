"""The run folder: every file of a run, and the numbers made of them."""
