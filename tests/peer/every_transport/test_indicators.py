"""Collect and stage indicators, over every transport."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peerstage import Indicators, LocalPeer, Reason, RemoteFile, RemotePeer, StageError
from peerstage.errors import RemoteError
from support.every_transport import OptionsFor
from support.files import write_files
from support.sshd import Sshd, free_port

NOON = 1_700_000_000


def test_the_collect_indicator_is_a_regular_file_or_a_link_to_one(
    peer: RemotePeer, collect: Path, transport: str
) -> None:
    with peer:
        assert not peer.checkCollectIndicator()
        write_files(collect, **{"cback.collect": b"", "mine": b""})
        assert peer.checkCollectIndicator()
        assert peer.checkCollectIndicator("mine")
        assert not peer.checkCollectIndicator("cback.*")
        (collect / "link").symlink_to("mine")
        assert peer.checkCollectIndicator("link")
        (collect / "directory").mkdir()
        assert not peer.checkCollectIndicator("directory")


def test_the_indicators_are_read_with_their_sizes_and_with_the_times_that_the_transport_tells(
    peer: RemotePeer, collect: Path, transport: str
) -> None:
    with peer:
        assert peer.readIndicators() == Indicators()
        write_files(collect, **{"cback.collect": b"text", "cback.stage": b""})
        os.utime(collect / "cback.collect", (NOON, NOON + 0.5))
        os.utime(collect / "cback.stage", (NOON, NOON + 7.5))
        expected = Indicators(RemoteFile(4, NOON), RemoteFile(0, NOON + 7))
        assert peer.readIndicators() == (expected if transport == "sftp" else Indicators(RemoteFile(4)))
        assert peer.readIndicators().stage_is_newer is (transport == "sftp")
        peer.collectDir = str(collect / "cback.collect")
        if transport == "sftp":
            with pytest.raises(RemoteError) as caught:
                peer.readIndicators()
            assert caught.value.reason is Reason.NOT_A_DIRECTORY


def test_a_failed_check_is_false_and_logged_at_the_level_that_fits(
    sshd: Sshd, collect: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peerstage")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True)
    blob = (tmp_path / "k.pub").read_text().split()[1]
    changed = f"[127.0.0.1]:{sshd.port} ssh-ed25519 {blob}\n".encode()
    real = sshd.known_hosts.read_text().split()[2]
    revoked = f"@revoked * ssh-ed25519 {real}\n".encode()
    table: list[tuple[int, str, dict[str, Any], dict[str, Any]]] = [
        (logging.INFO, "does not exist yet.", {}, {}),
        (logging.WARNING, "[connection-refused]", {"port": free_port()}, {}),
        (logging.WARNING, "[not-found]", {}, {"collectDir": str(tmp_path / "missing")}),
        (logging.WARNING, "[not-found]", {}, {"collectDir": str(tmp_path / "missing"), "transport": "scp"}),
        (logging.WARNING, "[not-a-directory]", {}, {"collectDir": str(tmp_path / "k.pub")}),
        (logging.ERROR, "[host-key-changed]", {"known_hosts": changed}, {}),
        (logging.ERROR, "[host-key-revoked]", {"known_hosts": revoked}, {}),
        (logging.ERROR, "[host-key-unknown]", {"known_hosts": ()}, {}),
        (logging.ERROR, "[login-refused]", {"identity": str(tmp_path / "k")}, {}),
        (logging.ERROR, "[program-missing]", {}, {"rcpCommand": "/does/not/exist"}),
        (logging.INFO, "does not exist yet.", {}, {"transport": "scp"}),
        (logging.ERROR, "[host-key-changed]", {"known_hosts": changed}, {"transport": "scp"}),
        (logging.ERROR, "[unknown-local-user]", {}, {"localUser": "another"}),
    ]
    for level, end, options, arguments in table:
        caplog.clear()
        arguments = {"collectDir": str(collect), "workingDir": "/tmp", "remoteUser": sshd.user, **arguments}
        peer = RemotePeer(sshd.host, ssh=sshd.options(**options), **arguments)
        assert not peer.checkCollectIndicator()
        assert (peer.last_error is None) == (level == logging.INFO)
        ours = [record for record in caplog.records if record.name == "peerstage.peer"]
        assert [record.levelno for record in ours] == [level], (options, arguments, caplog.text)
        assert sshd.host in ours[0].getMessage()
        assert ours[0].getMessage().endswith(end)


@pytest.mark.parametrize("indicator", ["a/b", "/etc/passwd", "..", ".", "", "a\0b", 7])
def test_an_indicator_is_a_plain_file_name(peer: RemotePeer, indicator: Any, collect: Path) -> None:
    local = LocalPeer("here", str(collect))
    for checked in (peer, local):
        with pytest.raises(ValueError, match="Indicator"):
            checked.checkCollectIndicator(indicator)
        with pytest.raises(ValueError, match="Indicator"):
            checked.writeStageIndicator(indicator)


def test_the_stage_indicator_is_created_empty_or_truncated(peer: RemotePeer, collect: Path, transport: str) -> None:
    write_files(collect, **{"cback.stage": b"old content"})
    peer.writeStageIndicator()
    assert (collect / "cback.stage").read_bytes() == b""
    name = "with spaces" if transport == "rcp" else "with space and *"
    peer.writeStageIndicator(name)
    assert (collect / name).read_bytes() == b""
    assert stat.S_IMODE((collect / name).stat().st_mode) == 0o644


def test_files_in_the_working_directory_are_neither_sent_nor_deleted(
    sshd: Sshd, collect: Path, public_path: Path, options_for: OptionsFor
) -> None:
    working = public_path / "working"
    working.mkdir()
    working.chmod(0o777)
    write_files(working, **{"cback.stage": b"mine", "cback.collect": b"mine"})
    peer = RemotePeer(sshd.host, str(collect), str(working), sshd.user, **options_for(sshd))
    peer.writeStageIndicator()
    peer.checkCollectIndicator()
    assert (collect / "cback.stage").read_bytes() == b""
    assert {path.name: path.read_bytes() for path in working.iterdir()} == {
        "cback.stage": b"mine",
        "cback.collect": b"mine",
    }


def test_a_stage_indicator_that_cannot_be_written_is_an_os_error(unprivileged: RemotePeer, transport: str) -> None:
    collect = Path(str(unprivileged.collectDir))
    collect.chmod(0o555)
    with pytest.raises(StageError, match=r"[Pp]ermission"):
        unprivileged.writeStageIndicator()
    unprivileged.collectDir = str(collect / "missing")
    with pytest.raises(StageError, match="no such directory" if transport == "sftp" else "No such file"):
        unprivileged.writeStageIndicator()
