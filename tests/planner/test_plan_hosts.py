"""The machines of a run as they are found in a Slurm job, and a run over two of them through the plan's own commands.

Slurm's commands are stood in for by small scripts; the machines are addresses of the loopback.
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_lab.conductor.children import check_engines
from grpo_lab.config.errors import RequestError
from grpo_lab.machine.logs import Log
from grpo_lab.machine.nodes import LOCAL, Host, read_hosts
from grpo_lab.machine.ports import lease
from grpo_lab.machine.processes import Child
from grpo_lab.planner.parts import Command, Ports
from grpo_lab.planner.train import make_plan
from grpo_lab.server.process import ServerError
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, cli
from tests.planner.test_plan import QWEN, asked, with_gpus

SRUN = """#!/bin/sh
echo "$@" >> {log}
while [ "${{1#--}}" != "$1" ]; do shift; done
exec "$@"
"""
"""Starts the command here, whatever machine was named."""


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_the_machines_of_a_slurm_job(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        commands / "scontrol",
        '#!/bin/sh\n[ "$*" = "show hostnames 127.0.0.[1-2]" ] && printf "127.0.0.1\\n127.0.0.2\\n"',
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "127.0.0.[1-2]")
    assert read_hosts(asked("nodes=2")) == (
        Host("127.0.0.1", "127.0.0.1", here=True),
        Host("127.0.0.2", "127.0.0.2", here=False),
    )
    assert read_hosts(asked("nodes=1")) == ()


def test_a_name_of_ours_that_is_a_loopback_address_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian writes /etc/hosts: our own name is 127.0.1.1, which the others cannot reach."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    names = {"ours": "127.0.1.1", "theirs": "127.0.0.3"}
    monkeypatch.setattr(socket, "gethostbyname", names.__getitem__)
    ours, theirs = read_hosts(asked("nodes=2", "hosts=[ours,theirs]"))
    assert (ours.name, ours.here, theirs.address, theirs.here) == ("ours", True, "127.0.0.3", False)
    assert ours.address != "127.0.1.1"


@pytest.mark.parametrize(
    ("overrides", "in_a_job", "reason"),
    [
        (["nodes=2"], False, "not known outside of a Slurm job"),
        (["nodes=2", "hosts=[127.0.0.1,127.0.0.2]"], False, "127.0.0.2 is reached through srun"),
        (["nodes=2", "hosts=[192.0.2.77,127.0.0.1]"], True, "the first machine is 192.0.2.77"),
        (["nodes=2", "hosts=[127.0.0.1,no.such.machine.invalid]"], True, "no.such.machine.invalid has no IPv4 address"),
    ],
)
def test_refused_before_anything_starts(
    overrides: list[str], in_a_job: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_a_job:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RequestError) as refusal:
        read_hosts(asked(*overrides))
    assert reason in str(refusal.value)


def test_only_other_machines_are_reached_through_slurm() -> None:
    assert LOCAL.reach(["python", "-V"]) == ("python", "-V")
    argv = Host("b", "10.0.0.2").reach(["python", "-V"])
    assert argv[0] == "srun"
    assert argv[-3:] == ("--nodelist=b", "python", "-V")


def test_a_dry_run_needs_no_job() -> None:
    said = cli("nodes=3", "vllm=server", "dry_run=true", "gpus=0").stdout
    for heading in ("# server, node0", "# trainer, node1", "# trainer, node2"):
        assert heading in said
    assert "http://node0:" in said
    assert "srun" in said


def test_two_machines_train_together(commands: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = runs.parent / "srun.log"
    script(commands / "srun", SRUN.format(log=log))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    layout = ("nodes=2", "hosts=[127.0.0.1,localhost]", "gpus=0")
    done = cli(*SHORT, *layout, "eval.enabled=false", f"runs_dir={runs}", "name=two")
    assert done.returncode == 0, done.stdout + done.stderr
    (started,) = log.read_text().splitlines()
    assert "--nodelist=localhost" in started
    assert "--node-rank=1 --master-addr=127.0.0.1" in started
    run = Run(runs / "two")
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4]
    assert store.read_json(run.plan)["batch"]["processes"] == 2


def test_accelerate_numbers_the_ranks_as_planned(tmp_path: Path) -> None:
    """The launcher of GPU machines starts without GPUs as well; only the worker is replaced."""
    here = Host("127.0.0.1", "127.0.0.1", here=True)
    machine = replace(with_gpus(2), hosts=(here, here))
    with lease(1) as (port,):
        plan = make_plan(asked(*QWEN, "nodes=2"), machine, folder=tmp_path, ports=Ports(0, 0, port))
        say = "import os\nos.write(1, '{RANK} {LOCAL_RANK} {WORLD_SIZE}\\n'.format_map(os.environ).encode())"
        (tmp_path / "say.py").write_text(say)
        started = [
            subprocess.Popen([*command.argv[:-3], str(tmp_path / "say.py")], stdout=subprocess.PIPE, text=True)
            for command in plan.trainer
        ]
        said = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert [sorted(lines) for lines in said] == [["0 0 4", "1 1 4"], ["2 0 4", "3 1 4"]]


def test_a_machine_that_does_not_answer_ends_the_run(
    commands: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(commands / "srun", "#!/bin/sh\necho srun: error: localhost is down >&2\nexit 3\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    done = cli(*SHORT, "nodes=2", "hosts=[127.0.0.1,localhost]", "gpus=0", f"runs_dir={runs}", "name=down")
    assert done.returncode == 1
    assert "exit code 3" in done.stdout
    assert "localhost is down" in done.stdout


def test_engines_that_end_elsewhere_are_the_servers_death(tmp_path: Path) -> None:
    log = Log(tmp_path / "server.log")
    command = Command(("sh", "-c", "echo MemoryError: none left; exit 0"), host="b")
    with Child(command.argv, env={}, log=log.path) as engine:
        engine.wait(10)
        with pytest.raises(ServerError, match=r"engines on b ended with exit code 0\nMemoryError: none left"):
            check_engines([command], [engine], log)
