"""Hostile SFTP servers, a sentence each: the run ends or an entry fails, and nothing is left behind."""

from __future__ import annotations

import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import IncompleteStage, LimitExceeded, NoSFTP, ProtocolError, StageError, TargetError
from peerstage.testing.contract import files_in
from peerstage.transport.sftp import wire
from support.sftp_server import (
    ClosesChannel,
    FakeSFTPServer,
    Node,
    pack_attributes,
    pack_packet,
    pack_string,
    stage_from,
)

GOOD = {b"good": Node(b"good"), b"other": Node(b"o" * 9000)}


class Lists(FakeSFTPServer):
    """Lists names of its choice."""

    names: tuple[bytes, ...] = ()

    def listing(self) -> list[tuple[bytes, bytes]]:
        return [*super().listing(), *((name, pack_attributes(Node(b"x"))) for name in self.names)]


@pytest.mark.parametrize(
    "name",
    [b"../x", b"/etc/passwd", b"a/b", b"", b"a\0b", b".ssh/authorized_keys", b"..\x00", b"sub/", b"good", b"\n/.."],
)
def test_a_name_that_no_directory_can_hold_ends_the_run(target: Path, name: bytes) -> None:
    server = Lists(dict(GOOD))
    server.names = (name,)
    with pytest.raises(ProtocolError) as caught:
        stage_from(server, target)
    assert_is_one_line(caught.value)
    assert files_in(target) == {}


def assert_is_one_line(error: StageError) -> None:
    text = str(error)
    assert text.startswith("peer")
    assert text.isprintable()


class RepeatsReplies(FakeSFTPServer):
    """Replies to every READ twice."""

    def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return super().read(request_id, handle, rest) * 2


class RepliesToOtherRequests(FakeSFTPServer):
    """Replies to requests that were never made."""

    def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_DATA, request_id ^ 0x5A5A5A5A, pack_string(b"x"))]


class PredictsRequests(FakeSFTPServer):
    """Replies before the request."""

    def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        ahead = pack_packet(wire.FXP_NAME, request_id + 1000, struct.pack(">I", 0))
        return [*super().opendir(request_id, path, rest), ahead]


class SendsTooMuch(FakeSFTPServer):
    """Sends more bytes than requested."""

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [pack_packet(wire.FXP_DATA, request_id, pack_string(b"x" * (length + 1)))]


class SendsAnotherType(FakeSFTPServer):
    """Replies to READs with names."""

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", 0))]


class ReadsOkWithoutData(FakeSFTPServer):
    """Replies to READs with SSH_FX_OK and no data."""

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return self.status(request_id, wire.FX_OK)


class LiesAboutLengths(FakeSFTPServer):
    """Announces more data than the packet holds."""

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [pack_packet(wire.FXP_DATA, request_id, struct.pack(">I", 1 << 31) + b"x")]


class SendsAHugePacket(FakeSFTPServer):
    """Announces a packet of 4 GiB."""

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [struct.pack(">IBI", 0xFFFFFFFF, wire.FXP_DATA, request_id)]


class SendsATinyPacket(FakeSFTPServer):
    """Announces a packet too short for its request id."""

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [struct.pack(">IB", 1, wire.FXP_DATA)]


class ListsEmptily(FakeSFTPServer):
    """Sends empty listings forever."""

    def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", 0))]


class CountsTooMuch(FakeSFTPServer):
    """Announces four billion names in a reply."""

    def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", 0xFFFFFFFF))]


class GivesLongHandles(FakeSFTPServer):
    """Sends handles of a thousand bytes."""

    def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_HANDLE, request_id, pack_string(b"h" * 1000))]


class SpeaksAnotherVersion(FakeSFTPServer):
    """Speaks SFTP 2."""

    def answer(self, request: bytes) -> list[bytes]:
        return [struct.pack(">IBI", 5, wire.FXP_VERSION, 2)]


class SpeaksNoVersion(FakeSFTPServer):
    """Sends a version packet without a version."""

    def answer(self, request: bytes) -> list[bytes]:
        return [struct.pack(">IB", 1, wire.FXP_VERSION)]


class Greets(FakeSFTPServer):
    """Has a login script that prints text."""

    def answer(self, request: bytes) -> list[bytes]:
        return [b"Welcome to db1!\x1b[2J\r\n", *super().answer(request)]


class RepliesToFstatWithHandle(FakeSFTPServer):
    """Replies to FSTAT with a handle."""

    def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_HANDLE, request_id, pack_string(b"h"))]


@pytest.mark.parametrize(
    "server",
    [
        RepeatsReplies,
        RepliesToOtherRequests,
        PredictsRequests,
        SendsTooMuch,
        SendsAnotherType,
        ReadsOkWithoutData,
        LiesAboutLengths,
        SendsAHugePacket,
        SendsATinyPacket,
        ListsEmptily,
        CountsTooMuch,
        GivesLongHandles,
        SpeaksAnotherVersion,
        SpeaksNoVersion,
        Greets,
        RepliesToFstatWithHandle,
    ],
)
def test_a_protocol_violation_ends_the_run_and_publishes_nothing(server: type[FakeSFTPServer], target: Path) -> None:
    (target / "old").write_bytes(b"old")
    with pytest.raises(ProtocolError) as caught:
        stage_from(server(dict(GOOD)), target)
    assert_is_one_line(caught.value)
    assert files_in(target) == {b"old": b"old"}


def test_text_before_the_version_is_quoted_with_advice(target: Path) -> None:
    with pytest.raises(ProtocolError, match=r"Welcome to db1!.*internal-sftp"):
        stage_from(Greets(dict(GOOD)), target)


class ClosesChannelAtOnce(ClosesChannel):
    """Runs no SFTP server, but a program that prints *output* and exits."""

    output = b""

    def answer(self, request: bytes) -> list[bytes]:
        return [self.output[at : at + 1] for at in range(len(self.output))]


def test_a_channel_that_closes_without_a_byte_means_no_sftp(target: Path) -> None:
    server = ClosesChannelAtOnce(dict(GOOD))
    with pytest.raises(NoSFTP, match=r"choose the transport scp") as caught:
        stage_from(server, target)
    assert not caught.value.transient
    assert server.receives == 1


@pytest.mark.parametrize("output", [b"x", b"no\n", b"This account is not available.\n"])
def test_output_instead_of_sftp_is_quoted_however_short(target: Path, output: bytes) -> None:
    server = ClosesChannelAtOnce(dict(GOOD))
    server.output = output
    with pytest.raises(ProtocolError, match=f"sent '{output[:4].decode().strip()}"):
        stage_from(server, target)


@pytest.mark.parametrize(
    ("size", "kind", "message"), [(1 << 60, LimitExceeded, "total_bytes"), (1 << 43, TargetError, "are to be staged")]
)
def test_a_huge_size_is_refused_before_the_first_read(
    target: Path, size: int, kind: type[StageError], message: str
) -> None:
    class ListsHugeFile(FakeSFTPServer):
        """Lists a file larger than any disk."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            huge = struct.pack(">IQIIIII", 0xF, size, 0, 0, stat.S_IFREG | 0o644, 0, 0)
            return [*super().listing(), (b"huge", huge)]

    server = ListsHugeFile(dict(GOOD))
    with pytest.raises(kind, match=message):
        stage_from(server, target)
    assert server.reads == []
    assert files_in(target) == {}


def assert_only_bad_fails(server: FakeSFTPServer, target: Path, match: str) -> None:
    """Assert that the entry ``bad`` fails, the others are staged, and every handle is closed."""
    with pytest.raises(IncompleteStage, match=match) as caught:
        stage_from(server, target)
    assert_is_one_line(caught.value)
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}
    assert caught.value.report is not None
    assert [file.name for file in caught.value.report.failed] == ["bad"]
    assert not [node for node in server.handles.values() if node != "directory"]


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_file_that_ends_early_fails_alone(target: Path, size: int) -> None:
    class Truncates(FakeSFTPServer):
        """Ends one file in its middle."""

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            if node is bad and offset + length > size // 2:
                return self.status(request_id, wire.FX_EOF)
            return super().data(request_id, node, offset, length)

    bad = Node(b"b" * size)
    assert_only_bad_fails(Truncates({**GOOD, b"bad": bad}), target, "It ends at byte .*, but was listed with")


@pytest.mark.parametrize("size", [10, 20_000])
def test_empty_data_before_the_end_fails_the_file(target: Path, size: int) -> None:
    class SendsEmptyData(FakeSFTPServer):
        """Sends data of length zero."""

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            empty = node is bad and offset + length >= size
            return (
                [pack_packet(wire.FXP_DATA, request_id, pack_string(b""))]
                if empty
                else super().data(request_id, node, offset, length)
            )

    bad = Node(b"b" * size)
    assert_only_bad_fails(SendsEmptyData({**GOOD, b"bad": bad}), target, "It ends at byte .*, but was listed with")


@pytest.mark.parametrize("size", [0, 10, 20_000])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mtime": 1}, "modified"),
        ({"data": b"another size"}, "size changed"),
        ({"mode": stat.S_IFIFO | 0o644}, "not a regular file"),
        ({"mode": stat.S_IFDIR | 0o755}, "not a regular file"),
        ({"mode": stat.S_IFCHR | 0o666}, "not a regular file"),
    ],
)
def test_an_open_file_that_differs_from_the_listing_fails_alone(
    target: Path, size: int, change: dict[str, Any], reason: str
) -> None:
    class Switches(FakeSFTPServer):
        """Reports other attributes once a file is open."""

        def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            node = self.handles[handle]
            if node is bad:
                node = Node(**{"data": bad.data, "mode": bad.mode, "mtime": bad.mtime, **change})
            assert isinstance(node, Node)
            return [pack_packet(wire.FXP_ATTRS, request_id, pack_attributes(node))]

    bad = Node(b"b" * size)
    assert_only_bad_fails(Switches({**GOOD, b"bad": bad}), target, reason)


def test_a_change_after_a_short_read_is_detected(target: Path) -> None:
    class ChangesLate(FakeSFTPServer):
        """Sends half of a READ, and changes the file before the rest is requested."""

        shortened = False

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            if node is bad and not self.shortened:
                self.shortened = True
                return super().data(request_id, node, offset, length // 2)
            if node is bad:
                bad.mtime += 1
            return super().data(request_id, node, offset, length)

    bad = Node(b"b" * 1000)
    assert_only_bad_fails(ChangesLate({**GOOD, b"bad": bad}), target, "modified")


def test_one_read_error_among_many_fails_one_file(target: Path) -> None:
    class Fails(FakeSFTPServer):
        """Has one bad block."""

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            if node is bad and offset == 8192:
                return self.status(request_id, wire.FX_FAILURE, b"Input/output\nerror")
            return super().data(request_id, node, offset, length)

    bad = Node(b"b" * 100_000)
    assert_only_bad_fails(Fails({**GOOD, b"bad": bad}), target, "could not be read")


@pytest.mark.parametrize("mode", [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFLNK])
def test_only_regular_files_are_opened(target: Path, mode: int) -> None:
    class RejectsOpen(FakeSFTPServer):
        """Fails the test if the entry is opened."""

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            assert path != b"/c/bad"
            return super().open(request_id, path, rest)

    assert_only_bad_fails(RejectsOpen({**GOOD, b"bad": Node(mode=mode | 0o644)}), target, "bad: It is")


def test_set_id_bits_and_far_future_times_are_harmless(target: Path) -> None:
    stage_from(FakeSFTPServer({b"a": Node(b"a", mode=stat.S_IFREG | 0o7777, mtime=2**32 - 1)}), target)
    assert stat.S_IMODE((target / "a").stat().st_mode) & 0o7000 == 0


def test_attributes_missing_from_the_listing_are_queried(target: Path) -> None:
    class ListsNoAttributes(FakeSFTPServer):
        """Lists names without attributes."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [(name, struct.pack(">I", 0)) for name in self.files]

    stage_from(ListsNoAttributes(dict(GOOD)), target)
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}


def test_escapes_in_names_never_reach_a_message(target: Path) -> None:
    name = "\x1b[2Jevil\u202e\u2028\n".encode()
    with pytest.raises(IncompleteStage) as caught:
        stage_from(FakeSFTPServer({**GOOD, name: Node(mode=stat.S_IFDIR | 0o755)}), target)
    assert_is_one_line(caught.value)


def test_a_failed_close_is_harmless(target: Path) -> None:
    class RefusesClose(FakeSFTPServer):
        """Fails every CLOSE."""

        def close_handle(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            super().close_handle(request_id, handle, rest)
            return self.status(request_id, wire.FX_FAILURE)

    stage_from(RefusesClose(dict(GOOD)), target)
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}
