"""The pytest plugin is available to every user, and does not affect runs that do not use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import RemotePeer
from peerstage.errors import ConnectError
from peerstage.testing import EmbeddedServer, Faults, MemoryHost

#: Tests of a user. They run in this order.
USERS_TESTS = """
import sys

def ours():
    return sorted(name for name in sys.modules if name.partition(".")[0] == "peerstage")

def test_the_plugin_is_loaded_and_has_not_imported_peerstage(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("peerstage")
    assert ours() == []
    assert "paramiko" not in sys.modules

def test_a_script_is_tested_in_memory(peerstage_hosts, tmp_path):
    from peerstage import RemotePeer
    from peerstage.testing import MemoryHost

    peerstage_hosts["db1"] = MemoryHost({"/srv/collect": {"cback.collect": b""}})
    peer = RemotePeer("db1", "/srv/collect", None, "backup")
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(tmp_path) == 1
"""


def test_it_imports_peerstage_only_when_a_fixture_is_used(fresh_interpreter: str, tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "--rootdir",
        tmp_path,
    ]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout


def test_servers_end_with_the_test(
    fresh_interpreter: str, peerstage_server: Callable[..., EmbeddedServer], collect: Path, target: Path
) -> None:
    (collect / "data").write_bytes(b"content")
    one, other = peerstage_server(collect), peerstage_server(faults=Faults(cut_after=0))
    assert RemotePeer(one.host, "/", None, one.username, ssh=one.options).stagePeer(target) == 1
    with pytest.raises(ConnectError):
        RemotePeer(other.host, "/", None, other.username, ssh=other.options).stagePeer(target)
    assert one.directory == collect
    assert os.listdir(other.directory) == []


def test_no_test_with_hosts_in_memory_reaches_the_network(
    peerstage_hosts: dict[str, MemoryHost], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> object:
        raise AssertionError("This was to be done in memory.")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(ConnectError):
        RemotePeer("127.0.0.1", "/c", None, "backup").stagePeer(target)
    peerstage_hosts["db1"] = MemoryHost({"/c": {"data": b"content"}})
    assert RemotePeer("db1", "/c", None, "backup").stagePeer(target) == 1


def test_each_test_starts_without_hosts(peerstage_hosts: dict[str, MemoryHost]) -> None:
    assert peerstage_hosts == {}


def test_the_fixtures_are_documented(pytestconfig: pytest.Config) -> None:
    plugin = pytestconfig.pluginmanager.get_plugin("peerstage")
    fixtures = {name: fixture.__doc__ for name, fixture in vars(plugin).items() if name.startswith("peerstage_")}
    assert set(fixtures) == {"peerstage_hosts", "peerstage_server"}
    assert all(fixtures.values())
