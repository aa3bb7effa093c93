"""Where the points of a sweep run: this machine, Slurm, a Ray cluster."""
