"""What SFTP servers tell about one file, and what they may leave out."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

import pytest

from peerstage.records import Indicators, RemoteFile
from peerstage.staging import read_indicators
from peerstage.transport.sftp import wire
from support.sftp_server import MTIME, FakeSFTPServer, Node, pack_packet, transport_to

COLLECT, STAGE = b"/c/cback.collect", b"/c/cback.stage"
SIZE, PERMISSIONS, TIMES = 1, 4, 8


@dataclass
class RepliesToStat(FakeSFTPServer):
    """Replies to STAT with these attributes, whatever the file."""

    attributes: bytes = b""

    def stat(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_ATTRS, request_id, self.attributes)]


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        (struct.pack(">I", 0), RemoteFile()),
        (struct.pack(">IQ", SIZE, 7), RemoteFile(7)),
        (struct.pack(">III", TIMES, 1, MTIME), RemoteFile(None, MTIME)),
        (struct.pack(">III", TIMES, 1, 0), RemoteFile()),
        (struct.pack(">III", TIMES, 1, 2**32 - 1), RemoteFile(None, 2**32 - 1)),
        (struct.pack(">IQI", SIZE | PERMISSIONS, 2**64 - 1, stat.S_IFREG | 0o600), RemoteFile(2**64 - 1)),
        (struct.pack(">IQI", SIZE | PERMISSIONS, 7, 0o600), RemoteFile(7)),
        (struct.pack(">IQI", SIZE | PERMISSIONS, 7, stat.S_IFDIR | 0o700), None),
        (struct.pack(">IQI", SIZE | PERMISSIONS, 7, stat.S_IFIFO | 0o700), None),
    ],
)
def test_what_a_server_leaves_out_or_sends_as_zero_is_unknown(attributes: bytes, found: RemoteFile | None) -> None:
    assert transport_to(RepliesToStat(attributes=attributes)).stat(COLLECT) == found


def test_two_requests_read_two_indicators() -> None:
    server = FakeSFTPServer({b"cback.collect": Node(b"12"), b"cback.stage": Node(mtime=MTIME + 1)})
    found = read_indicators(transport_to(server), COLLECT, STAGE)
    assert found == Indicators(RemoteFile(2, MTIME), RemoteFile(0, MTIME + 1))
    assert server.requests[wire.FXP_STAT] == 2
    assert set(server.requests) == {wire.FXP_INIT, wire.FXP_EXTENDED, wire.FXP_STAT}


def test_the_stage_indicator_is_not_asked_for_if_the_time_of_the_other_is_unknown() -> None:
    server = RepliesToStat(attributes=struct.pack(">IQ", SIZE, 7))
    assert read_indicators(transport_to(server), COLLECT, STAGE) == Indicators(RemoteFile(7))
    assert server.requests[wire.FXP_STAT] == 1
