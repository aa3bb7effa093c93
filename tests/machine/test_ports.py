"""Leases between threads of nobody: other processes, killed holders, ports in use."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.ports import is_free, lease, port_range

HOLD = """
from grpo_lab.machine.ports import lease
with lease(2) as ports:
    print(*ports, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def small_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRPO_LAB_PORTS", "19500-19503")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_leases_are_disjoint_and_end_with_the_block() -> None:
    with lease(2) as first, lease(2) as second:
        assert sorted(first + second) == [19500, 19501, 19502, 19503]
        with pytest.raises(RequestError, match="19500-19503"), lease(1):
            pass
    with lease(4) as again:
        assert len(set(again)) == 4


def test_a_lease_ends_with_its_process() -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = {int(port) for port in other.stdout.readline().split()}
    with lease(2) as ours:
        assert theirs.isdisjoint(ours)
    other.kill()
    other.communicate()
    with lease(4) as all_of_them:
        assert theirs < set(all_of_them)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_in_use_is_not_leased(host: str) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind((host, 19501))
        server.listen()
        assert not is_free(19501)
        with lease(3) as ports:
            assert 19501 not in ports


@pytest.mark.parametrize("text", ["", "20000", "80-90", "3000-2000", "a-b", "20000-70000"])
def test_a_range_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GRPO_LAB_PORTS", text)
    with pytest.raises(RequestError, match="GRPO_LAB_PORTS"):
        port_range()
