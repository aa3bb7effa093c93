"""vLLM as a process: its command, its start and watch, its key, its counters."""
