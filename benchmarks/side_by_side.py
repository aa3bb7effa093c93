"""Benches whose servers start together and are measured one after another, where starts take longer than loads.

    python benchmarks/side_by_side.py --common "experiment=tp_dp_4gpu model=qwen2.5-7b" \\
        "vllm.tp=1 vllm.engine.kv_cache_memory_bytes=9000000000" \\
        "vllm.tp=2 vllm.engine.kv_cache_memory_bytes=5300000000"

Each argument holds the overrides of one `grpo_lab.bench` with a server of its own, whose words go to NAME.log
beside its run folder. All servers stay on the same GPUs until the last is measured, and all but one of them are idle:
what a card's `peak_memory_gib` says is of all, and of its watts a part. A server among others cannot tell how much
memory it may take, so each needs `vllm.engine.kv_cache_memory_bytes`, which is for each of its GPUs. Nothing checks
that all of them fit.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import shlex
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from hydra import compose, initialize_config_dir
from rich.console import Console

from grpo_lab.conductor.bench import DEFAULTS, Bench
from grpo_lab.conductor.job import conduct
from grpo_lab.conductor.run import read_site
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import exit_codes
from grpo_lab.config.errors import RunFailed
from grpo_lab.config.places import CONF

BESIDE_OTHERS = ("vllm=server", "vllm.gpu_memory_utilization=0.02", "fit=off", "tracker=none")
"""vLLM asks for that share of a card to be free when it starts, and takes what kv_cache_memory_bytes says."""


class Turn:
    """Waits for "go" with the server ready, and for "end" with the loads done."""

    def __init__(self, parent: Connection) -> None:
        self.parent = parent

    def __enter__(self) -> None:
        self._tell("ready")

    def __exit__(self, *error: object) -> None:
        self._tell("done")

    def _tell(self, what: str) -> None:
        try:
            self.parent.send(what)
            self.parent.recv()
        except (EOFError, BrokenPipeError):
            raise RunFailed("the process that started this bench has ended") from None


def bench(overrides: Sequence[str], parent: Connection) -> None:
    """One of the benches, in a process of its own."""
    sys.argv = ["bench", *BESIDE_OTHERS, *overrides]  # what env.json says was asked
    configuration.register(DEFAULTS)
    with exit_codes(), initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = configuration.from_hydra(compose("config", [*BESIDE_OTHERS, *overrides]))
        job = Bench(config, read_site(config), Turn(parent))
        folder = job.run.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.log").open("w") as log:
            conduct(job, Console(file=log))


class Member:
    """A bench as its parent sees it."""

    def __init__(self, overrides: str, common: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, (self.pipe, theirs) = overrides, context.Pipe()
        self.process = context.Process(target=bench, args=([*common, *shlex.split(overrides)], theirs))
        self.process.start()
        theirs.close()

    def says(self, what: str) -> bool:
        """Waits for its word; whether it came. A bench that fails says nothing more."""
        try:
            heard = self.pipe.recv() == what
        except (EOFError, ConnectionResetError):
            heard = False
        print(f"{what if heard else 'failed'}: {self.name}", flush=True)
        return heard

    def hears(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and `says` will tell
            self.pipe.send(what)

    def go(self) -> bool:
        """Waits until it is measured; whether it was."""
        self.hears("go")
        return self.says("done")


def main() -> None:
    """Exit code 1 if one of the benches failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--common", default="", help="overrides of all benches")
    parser.add_argument("benches", nargs="+", metavar="OVERRIDES")
    asked = parser.parse_args()
    members = [Member(overrides, shlex.split(asked.common)) for overrides in asked.benches]
    try:
        ready = [member for member in members if member.says("ready")]
        done = [member for member in ready if member.go()]
        for member in done:
            member.hears("end")
    finally:
        for member in members:
            member.pipe.close()  # whoever still waits ends
        for member in members:
            member.process.join()
    sys.exit(any(member.process.exitcode for member in members))


if __name__ == "__main__":
    main()
