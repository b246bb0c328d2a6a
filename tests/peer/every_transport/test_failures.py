"""Failures over every transport: each is an OSError, and leaves the target untouched."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer, SSHOptions, StageError
from peerstage.errors import IncompleteStage, LimitExceeded, NothingToStage
from support.files import write_files
from support.programs import rcp_command
from support.sshd import Sshd, free_port


def test_empty_missing_and_unreadable_collect_directories_are_os_errors(
    unprivileged: RemotePeer, target: Path, transport: str
) -> None:
    empty, unlistable, missing = {
        "sftp": ("no file", "permission", "no such directory"),
        "scp": ("no file", "cannot read it", "no such directory"),
        "rcp": ("No such file", "Permission denied", "No such file"),
    }[transport]
    write_files(target, old=b"old")
    collect = Path(str(unprivileged.collectDir))
    with pytest.raises(NothingToStage if transport != "rcp" else StageError):
        unprivileged.stagePeer(str(target))
    write_files(collect, **{".only-hidden": b""})
    with pytest.raises(OSError, match=empty):
        unprivileged.stagePeer(str(target))
    collect.chmod(0)
    with pytest.raises(OSError, match=unlistable):
        unprivileged.stagePeer(str(target))
    collect.chmod(0o755)
    unprivileged.collectDir = str(collect / "missing")
    with pytest.raises(OSError, match=missing):
        unprivileged.stagePeer(str(target))
    assert [path.name for path in target.iterdir()] == ["old"]


def test_limits_on_sizes_fail_one_file_or_the_run(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, small=b"s" * 10, large=b"l" * 100_000, other=b"o" * 20)
    write_files(target, old=b"old")
    peer.limits = Limits(total_bytes=100_000)
    with pytest.raises(LimitExceeded, match="total_bytes"):
        peer.stagePeer(str(target))
    assert [path.name for path in target.iterdir()] == ["old"]
    peer.limits = Limits(file_bytes=1000, total_bytes=1000)
    if peer.rcpCommand is not None:  # the command has written everything
        peer.limits = Limits(file_bytes=1000)
    with pytest.raises(IncompleteStage, match="1 of 3 entries could not be staged: large: It has 100000 bytes"):
        peer.stagePeer(str(target))
    assert sorted(path.name for path in target.iterdir()) == ["old", "other", "small"]


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_wrong_host_port_user_or_key_is_an_os_error(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, leaves_nothing: None, transport: str
) -> None:
    write_files(collect, a=b"a")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    attempts: list[tuple[str, str, SSHOptions]] = [
        ("host.invalid", sshd.user, sshd.options()),
        (sshd.host, sshd.user, sshd.options(port=free_port())),
        (sshd.host, "no_such_user", sshd.options()),
        (sshd.host, sshd.user, sshd.options(identity=str(tmp_path / "other"))),
        (sshd.host, sshd.user, sshd.options(identity=str(tmp_path / "missing"))),
        (sshd.host, sshd.user, sshd.options(known_hosts=())),
    ]
    for host, user, options in attempts:
        peer = RemotePeer(host, str(collect), "/tmp", user, ssh=options, transport=transport)
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
        assert str(caught.value).startswith(host)
        assert "\n" not in str(caught.value)
        assert not peer.checkCollectIndicator()
        with pytest.raises(StageError):
            peer.writeStageIndicator()
    assert list(target.iterdir()) == []


def test_a_command_that_cannot_connect_or_log_in_is_an_os_error(
    sshd: Sshd, collect: Path, target: Path, leaves_nothing: None
) -> None:
    write_files(collect, a=b"a")
    write_files(target, old=b"old")
    command = rcp_command(sshd.ssh_arguments())
    attempts = [
        ("host.invalid", sshd.user, command),
        (sshd.host, sshd.user, command.replace(f"Port={sshd.port}", f"Port={free_port()}")),
        (sshd.host, "no_such_user", command),
        (sshd.host, sshd.user, command.replace(str(sshd.known_hosts), "/dev/null")),
        (sshd.host, sshd.user, "/usr/bin/scp -q -o Port=1 -o Nonsense=yes"),
    ]
    for host, user, line in attempts:
        peer = RemotePeer(host, str(collect), "/tmp", user, line)
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
        assert str(caught.value).startswith(host)
        assert str(caught.value).isprintable()
        assert not peer.checkCollectIndicator()
        with pytest.raises(StageError):
            peer.writeStageIndicator()
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_refused_connection_is_an_os_error(target: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server:
        port = server.getsockname()[1]
        server.close()
    peer = RemotePeer("127.0.0.1", "/collect", "/tmp", "backup", ssh=SSHOptions(port=port, config=(), known_hosts=()))
    calls: list[Callable[[], object]] = [lambda: peer.stagePeer(str(target)), peer.writeStageIndicator]
    for call in calls:
        with pytest.raises(StageError):
            call()
