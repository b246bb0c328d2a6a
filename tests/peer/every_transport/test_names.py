"""Names of files and directories, over every transport."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from peerstage import RemotePeer
from peerstage.errors import IncompleteStage
from peerstage.testing.contract import ODD_NAMES
from support.every_transport import OptionsFor
from support.files import write_files
from support.programs import rcp_command, require_program
from support.sshd import Sshd


def test_a_file_arrives_under_its_own_name_whatever_it_is(
    peer: RemotePeer, collect: Path, target: Path, transport: str
) -> None:
    names = set(ODD_NAMES) if transport == "sftp" else {name for name in ODD_NAMES if b"\n" not in name}
    for name in names:
        with open(os.fsencode(collect) + b"/" + name, "wb") as file:
            file.write(name)
    assert peer.stagePeer(str(target)) == len(names)
    assert set(os.listdir(os.fsencode(target))) == names
    assert peer.last_report is not None
    assert os.fsdecode(b"\xff\xfe not utf-8") in {file.name for file in peer.last_report.files}


def test_a_name_with_a_newline_is_an_error_of_its_entry_over_scp(sshd: Sshd, collect: Path, target: Path) -> None:
    write_files(collect, **{"new\nline": b"bad", "good": b"good"})
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(), transport="scp")
    with pytest.raises(IncompleteStage, match="Use SFTP"):
        peer.stagePeer(str(target))
    assert os.listdir(target) == ["good"]


def test_directory_names_may_contain_spaces_and_glob_characters(
    sshd: Sshd, tmp_path: Path, transport: str, options_for: OptionsFor
) -> None:
    # Only spaces are escaped for an rcp command; how it treats other characters is up to the command.
    collect = tmp_path / ("col  lect, soon" if transport == "rcp" else "col lect [a-z]*'\"$x")
    target = tmp_path / "tar get ?*"
    collect.mkdir()
    target.mkdir()
    write_files(collect, a=b"a", **{"cback.collect": b""})
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **options_for(sshd))
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(str(target)) == 2
    peer.writeStageIndicator()
    assert (collect / "cback.stage").exists()


@pytest.mark.parametrize("name", ["collect", "collect, soon"])
@pytest.mark.parametrize("command", ["scp", "scp -O", "rsync"])
def test_spaces_in_paths_reach_a_command_whether_or_not_it_uses_a_shell_on_the_peer(
    sshd: Sshd, tmp_path: Path, target: Path, caplog: pytest.LogCaptureFixture, command: str, name: str
) -> None:
    collect = tmp_path / name
    collect.mkdir()
    write_files(collect, a=b"a")
    ssh = sshd.ssh_arguments()
    line = {
        "scp": [require_program("scp"), "-q", *ssh],
        "scp -O": rcp_command(ssh).split(),
        "rsync": [require_program("rsync"), "-e", f'"{require_program("ssh")} {" ".join(ssh)}"'],
    }[command]
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, " ".join(line))
    caplog.set_level(logging.INFO, "peerstage.peer")
    assert not peer.checkCollectIndicator()
    assert "does not exist yet" in caplog.text
    peer.writeStageIndicator()
    peer.writeStageIndicator("new name with spaces")
    assert peer.checkCollectIndicator("new name with spaces")
    assert peer.stagePeer(str(target)) == 3
    assert sorted(os.listdir(collect)) == sorted(os.listdir(target)) == ["a", "cback.stage", "new name with spaces"]
