"""The operating system and the hardware: GPUs, processes, ports, locks, disk, logs."""
