"""``Match exec``: its command is ended by whatever ends the run, with all that it has started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer, Retry, SSHOptions
from peerstage.errors import Cancelled, ConfigurationError, LimitExceeded, StageError
from peerstage.session.config import resolve_destination
from peerstage.session.watchdog import Watchdog
from support.children import is_gone
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir(mode=0o700)
    return own_home / ".ssh" / "config"


@pytest.fixture
def script(config: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Configures a command that starts a child, writes down both numbers, and goes on with some lines of shell."""

    def write(last: str) -> Path:
        script, record = tmp_path / "script", tmp_path / "record"
        script.write_text(
            "#!/bin/sh\ntrap '' HUP TERM INT\nsleep 1000 &\n"
            f"echo $$ $! >{record}.new\nmv {record}.new {record}\n{last}\n"
        )
        script.chmod(0o755)
        config.write_text(f'Match exec "{script}"\n Port 2222\n')
        return record

    return write


def pids(record: Path) -> list[int]:
    return [int(pid) for pid in record.read_text().split()]


@pytest.mark.usefixtures("patience")
def test_its_children_end_with_it(script: Callable[[str], Path]) -> None:
    for last, port in (("exit 0", 2222), ("exit 1", 22)):
        record = script(last)
        assert resolve_destination("db1", "backup", SSHOptions()).port == port
        wait_until(lambda: all(is_gone(pid) for pid in pids(record)))  # noqa: B023
        record.unlink()


@pytest.mark.usefixtures("patience")
def test_its_children_end_with_its_time(script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstage.session.ssh_config._EXEC_SECONDS", 0.5)
    record = script("sleep 1000")
    with pytest.raises(ConfigurationError, match=r"config:1: Match exec took more than 0\.5 s"):
        resolve_destination("db1", "backup", SSHOptions())
    wait_until(lambda: all(is_gone(pid) for pid in pids(record)))


def test_cancelling_ends_it(script: Callable[[str], Path], target: Path) -> None:
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
    wait_until(lambda: all(is_gone(pid) for pid in pids(record)))


@pytest.mark.usefixtures("patience")
def test_the_deadline_ends_it_for_a_hop_too(
    config: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.session.ssh_config._EXEC_SECONDS", 600)
    command = f"sh -c 'touch {tmp_path}/begun; sleep 1000'"
    config.write_text(f'Host db1\n ProxyJump gate\nMatch host gate exec "{command}"\n User somebody\n')
    peer = RemotePeer("db1", "/c", "/tmp", "backup", limits=Limits(deadline=1.0), retry=Retry(tries=1))
    with pytest.raises(LimitExceeded, match="deadline"):
        peer.stagePeer(str(target))
    assert (tmp_path / "begun").exists()


def test_what_ends_the_run_is_no_complaint_about_the_configuration(script: Callable[[str], Path]) -> None:
    script("sleep 1000")
    watchdog = Watchdog(Limits())
    watchdog.cancel()
    with pytest.raises(StageError) as caught:
        resolve_destination("db1", "backup", SSHOptions(), watchdog=watchdog)
    assert type(caught.value) is Cancelled
