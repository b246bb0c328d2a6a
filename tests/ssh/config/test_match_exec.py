"""``Match exec``: its command and the command's children end with the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import Cancelled, ConfigurationError, LimitExceeded, StageError
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.watchdog import Watchdog
from support.waiting import exits_within, wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir(mode=0o700)
    return own_home / ".ssh" / "config"


@pytest.fixture
def script(config: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Configure a command that starts a child, records both process ids, and runs further lines of shell."""

    def write(end: str) -> Path:
        script, record = tmp_path / "script", tmp_path / "record"
        script.write_text(
            "#!/bin/sh\ntrap '' HUP TERM INT\nsleep 1000 &\n"
            f"echo $$ $! >{record}.new\nmv {record}.new {record}\n{end}\n"
        )
        script.chmod(0o755)
        config.write_text(f'Match exec "{script}"\n Port 2222\n')
        return record

    return write


def pids(record: Path) -> list[int]:
    return [int(pid) for pid in record.read_text().split()]


@pytest.mark.usefixtures("patience")
def test_the_children_of_the_command_end_with_it(script: Callable[[str], Path]) -> None:
    for end, port in (("exit 0", 2222), ("exit 1", 22)):
        record = script(end)
        assert resolve_destination("db1", "backup", SSHOptions()).port == port
        assert all(exits_within(pid) for pid in pids(record))
        record.unlink()


@pytest.mark.usefixtures("patience")
def test_the_children_of_the_command_end_at_its_time_limit(
    script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.ssh.config.read_config._EXEC_TIMEOUT", 0.5)
    record = script("sleep 1000")
    with pytest.raises(ConfigurationError, match=r"config:1: Match exec took more than 0\.5 s"):
        resolve_destination("db1", "backup", SSHOptions())
    assert all(exits_within(pid) for pid in pids(record))


def test_cancel_ends_the_command(script: Callable[[str], Path], target: Path) -> None:
    record = script("sleep 1000")
    peer = RemotePeer("db1", "/c", "/tmp", "backup")

    def cancel() -> None:
        wait_until(record.exists)
        peer.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Cancelled), peer:
        peer.stagePeer(str(target))
    canceller.join()
    assert all(exits_within(pid) for pid in pids(record))


@pytest.mark.usefixtures("patience")
def test_the_deadline_ends_the_command_for_a_jump_host_too(
    config: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.ssh.config.read_config._EXEC_TIMEOUT", 600)
    command = f"sh -c 'touch {tmp_path}/begun; sleep 1000'"
    config.write_text(f'Host db1\n ProxyJump gate\nMatch host gate exec "{command}"\n User somebody\n')
    peer = RemotePeer("db1", "/c", "/tmp", "backup", limits=Limits(deadline=1.0), retry=Retry(tries=1))
    with pytest.raises(LimitExceeded, match="deadline"):
        peer.stagePeer(str(target))
    assert (tmp_path / "begun").exists()


def test_an_interrupted_command_is_not_a_configuration_error(script: Callable[[str], Path]) -> None:
    script("sleep 1000")
    watchdog = Watchdog(Limits())
    watchdog.cancel()
    with pytest.raises(StageError) as caught:
        resolve_destination("db1", "backup", SSHOptions(), watchdog=watchdog)
    assert type(caught.value) is Cancelled
