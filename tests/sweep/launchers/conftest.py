"""Real clusters, each for the tests of one module. Where there can be none, the end of the session says so."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from grpo_lab.machine.processes import Child
from tests.machine.test_processes import MARK, marked
from tests.sweep.launchers.slurm_cluster import CannotStart, await_true, running_slurm

NO_SLURM = pytest.StashKey[str]()

RAY_NODES = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
Path(sys.argv[1] + ".draft").write_text(cluster.address)
Path(sys.argv[1] + ".draft").rename(sys.argv[1])
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def slurm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Slurm's commands in this process speak to a cluster of three nodes; see slurm_cluster.py."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp"))
        try:
            config = stack.enter_context(running_slurm(Path(folder)))
        except CannotStart as error:
            request.config.stash[NO_SLURM] = str(error)
            pytest.skip(f"no Slurm here: {error}")
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("SLURM_CONF", str(config))
        yield


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster of two nodes with two cores and two make-believe GPUs each."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        address, log = Path(folder) / "address", Path(folder) / "ray.log"
        env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
        with Child([sys.executable, "-c", RAY_NODES, str(address)], env=env, log=log, grace_s=1.0):
            await_true(address.exists, Path(folder), timeout_s=60)
            yield address.read_text()


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the environment of all that a test starts, wherever it runs; what is left is killed."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    yield value
    for process in marked(value):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if why := config.stash.get(NO_SLURM, None):
        terminalreporter.section("SLURM WAS NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(f"The tests against a real Slurm were skipped: {why}", yellow=True)
        terminalreporter.line("submitit's local executor stood in: no queue, no preemption.", yellow=True)
