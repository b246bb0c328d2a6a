"""Files that a target declines: scp sends no content of them, a server with SCP built in sends it in vain."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerstage.errors import RemoteError
from peerstage.records import StageReport
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from support.incoming import DecliningTarget
from support.scp_server import (
    COLLECT,
    AcknowledgesPerPacket,
    ScriptedCommand,
    ScriptedSession,
    SourceProgram,
    pack_file,
    transport_to,
)

NOT_DURABLE = StageOptions(durable=False)
FILES = {b"a": b"first", b"b": b"x" * 100_000, b"c": b"", b"d": b"y" * 50_000, b"e": b"last"}


def stage_some(stream: ScriptedCommand, target: Path, *, server: str = "SSH-2.0-OpenSSH_9.2p1") -> StageReport:
    """Stage what *stream* sends into a target that declines ``b`` and ``d``."""
    transport = transport_to(ScriptedSession(lambda command: stream, server))
    return stage(
        transport,
        COLLECT,
        DecliningTarget(str(target), declined=[b"b", b"d"], peer="peer", options=NOT_DURABLE),
    )


@pytest.mark.parametrize("server", ["SSH-2.0-OpenSSH_9.2p1", "SSH-2.0-dropbear_2022.83"])
def test_an_scp_program_sends_no_content_of_declined_files(target: Path, server: str) -> None:
    program = SourceProgram(FILES)
    assert stage_some(program, target, server=server).count == 3
    assert files_in(target) == {name: FILES[name] for name in (b"a", b"c", b"e")}
    assert program.data_sent == len(FILES[b"a"] + FILES[b"c"] + FILES[b"e"])
    assert program.wait() == 1, "scp counts declined files as errors"
    assert program.received == b"\0" + b"\0\0" + b"\1\n" + b"\0\0" + b"\1\n" + b"\0\0"


def test_times_are_acknowledged_before_a_file_is_declined(target: Path) -> None:
    program = SourceProgram(FILES, with_times=True)
    transport = transport_to(ScriptedSession(lambda command: program), preserve_times=True)
    staging_target = DecliningTarget(str(target), declined=[b"b", b"d"], options=NOT_DURABLE)
    assert {file.mtime for file in stage(transport, COLLECT, staging_target).files} == {1}
    assert program.data_sent == 9


def test_a_target_that_wants_all_has_every_file_acknowledged_ahead(target: Path) -> None:
    program = SourceProgram(FILES)
    (target / "b").mkdir()
    transport = transport_to(ScriptedSession(lambda command: program))
    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        transport.pull(COLLECT, staging_target)
        staging_target.commit()
    assert program.received == b"\0" * 1025
    assert program.data_sent == sum(map(len, FILES.values())), "the content of b was dropped"
    assert (target / "d").read_bytes() == FILES[b"d"]


def test_a_server_with_scp_built_in_sends_declined_files_in_vain(target: Path) -> None:
    stream = AcknowledgesPerPacket(*(pack_file(name, data) for name, data in FILES.items()))
    assert stage_some(stream, target, server="SSH-2.0-mod_sftp").count == 3
    assert files_in(target) == {name: FILES[name] for name in (b"a", b"c", b"e")}
    assert b"\1" not in stream.received


def test_status_1_is_an_error_if_no_file_was_declined(target: Path) -> None:
    with pytest.raises(RemoteError, match="status 1"):
        stage_some(ScriptedCommand([pack_file(b"a", b"first")], status=1), target)
    assert files_in(target) == {}
