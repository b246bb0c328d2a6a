"""Hostile SFTP servers, a small class and a sentence each (TRUST): what they get, and that nothing is left behind."""

from __future__ import annotations

import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import IncompleteStage, LandingError, NoSFTP, ProtocolError, StageError
from peerstage.testing.contract import landed
from peerstage.transport.sftp import wire
from support.sftp_server import HangsUp, Node, Server, attributes, packet, stage_from, string

GOOD = {b"good": Node(b"good"), b"other": Node(b"o" * 9000)}


class Lists(Server):
    """Lists names of its choice."""

    names: tuple[bytes, ...] = ()

    def listing(self) -> list[tuple[bytes, bytes]]:
        return [*super().listing(), *((name, attributes(Node(b"x"))) for name in self.names)]


@pytest.mark.parametrize(
    "name",
    [b"../x", b"/etc/passwd", b"a/b", b"", b"a\0b", b".ssh/authorized_keys", b"..\x00", b"sub/", b"good", b"\n/.."],
)
def test_a_name_that_no_directory_can_hold_ends_the_run(target: Path, name: bytes) -> None:
    server = Lists(dict(GOOD))
    server.names = (name,)
    with pytest.raises(ProtocolError) as caught:
        stage_from(server, target)
    refused_as_one_line(caught.value)
    assert landed(target) == {}


def refused_as_one_line(error: StageError) -> None:
    text = str(error)
    assert text.startswith("peer")
    assert text.isprintable()


class RepeatsReplies(Server):
    """Answers every read twice."""

    def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return super().read(number, handle, rest) * 2


class AnswersStrangers(Server):
    """Answers requests that were never made."""

    def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.DATA, number ^ 0x5A5A5A5A, string(b"x"))]


class PredictsRequests(Server):
    """Answers before it is asked."""

    def opendir(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        ahead = packet(wire.NAME, number + 1000, struct.pack(">I", 0))
        return [*super().opendir(number, path, rest), ahead]


class SendsTooMuch(Server):
    """Sends more than was asked for."""

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [packet(wire.DATA, number, string(b"x" * (length + 1)))]


class SendsAnotherType(Server):
    """Answers reads with names."""

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [packet(wire.NAME, number, struct.pack(">I", 0))]


class ReadsOkWithoutData(Server):
    """Says that a read went well, and gives nothing."""

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return self.status(number, wire.FX_OK)


class LiesAboutLengths(Server):
    """Says that a packet holds more data than it has room for."""

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [packet(wire.DATA, number, struct.pack(">I", 1 << 31) + b"x")]


class SendsAHugePacket(Server):
    """Announces a packet of 4 GiB."""

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [struct.pack(">IBI", 0xFFFFFFFF, wire.DATA, number)]


class SendsATinyPacket(Server):
    """Announces a packet too short for its number."""

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [struct.pack(">IB", 1, wire.DATA)]


class ListsEmptily(Server):
    """Lists nothing, for ever."""

    def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.NAME, number, struct.pack(">I", 0))]


class CountsTooMuch(Server):
    """Says that a reply holds four billion names."""

    def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.NAME, number, struct.pack(">I", 0xFFFFFFFF))]


class GivesLongHandles(Server):
    """Gives handles of a thousand bytes."""

    def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.HANDLE, number, string(b"h" * 1000))]


class SpeaksAnotherVersion(Server):
    """Speaks SFTP 2."""

    def answer(self, request: bytes) -> list[bytes]:
        return [struct.pack(">IBI", 5, wire.VERSION_REPLY, 2)]


class SpeaksNoVersion(Server):
    """Sends a version packet without a version."""

    def answer(self, request: bytes) -> list[bytes]:
        return [struct.pack(">IB", 1, wire.VERSION_REPLY)]


class Greets(Server):
    """Has a login script that prints text."""

    def answer(self, request: bytes) -> list[bytes]:
        return [b"Welcome to db1!\x1b[2J\r\n", *super().answer(request)]


class AnswersStatWithHandle(Server):
    """Confuses what it was asked."""

    def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.HANDLE, number, string(b"h"))]


@pytest.mark.parametrize(
    "kind",
    [
        RepeatsReplies,
        AnswersStrangers,
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
        AnswersStatWithHandle,
    ],
)
def test_what_breaks_the_protocol_ends_the_run_and_publishes_nothing(kind: type[Server], target: Path) -> None:
    (target / "old").write_bytes(b"old")
    with pytest.raises(ProtocolError) as caught:
        stage_from(kind(dict(GOOD)), target)
    refused_as_one_line(caught.value)
    assert landed(target) == {b"old": b"old"}


def test_text_before_the_version_is_quoted_and_the_way_out_named(target: Path) -> None:
    with pytest.raises(ProtocolError, match=r'Welcome to db1!.*transport="scp"'):
        stage_from(Greets(dict(GOOD)), target)


class HangsUpAtOnce(HangsUp):
    """Has no SFTP server behind its subsystem, and what there is says so much before it ends."""

    said = b""

    def answer(self, request: bytes) -> list[bytes]:
        return [self.said[at : at + 1] for at in range(len(self.said))]


def test_a_channel_that_ends_without_a_word_means_that_there_is_no_sftp(target: Path) -> None:
    server = HangsUpAtOnce(dict(GOOD))
    with pytest.raises(NoSFTP, match=r'transport="scp"') as caught:
        stage_from(server, target)
    assert not caught.value.transient
    assert server.receives == 1


@pytest.mark.parametrize("said", [b"x", b"no\n", b"This account is not available.\n"])
def test_text_that_is_all_the_peer_says_is_quoted_however_little_it_is(target: Path, said: bytes) -> None:
    server = HangsUpAtOnce(dict(GOOD))
    server.said = said
    with pytest.raises(ProtocolError, match=f"begins with '{said[:4].decode().strip()}"):
        stage_from(server, target)


def test_a_size_of_2_to_the_60_is_refused_before_the_first_read(target: Path) -> None:
    class Boasts(Server):
        """Promises more than any disk holds."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            told = struct.pack(">IQIIIII", 0xF, 1 << 60, 0, 0, stat.S_IFREG | 0o644, 0, 0)
            return [*super().listing(), (b"boast", told)]

    server = Boasts(dict(GOOD))
    with pytest.raises(LandingError, match="are to come"):
        stage_from(server, target)
    assert server.asked == []
    assert landed(target) == {}


def entry_fails(server: Server, target: Path, reason: str) -> None:
    """The entry ``bad`` fails for *reason*, the others are staged, every handle is closed."""
    with pytest.raises(IncompleteStage, match=reason) as caught:
        stage_from(server, target)
    refused_as_one_line(caught.value)
    assert landed(target) == {name: node.data for name, node in GOOD.items()}
    assert caught.value.report is not None
    assert [one.name for one in caught.value.report.failed] == ["bad"]
    assert not [node for node in server.handles.values() if node != "directory"]


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_file_that_ends_early_fails_alone(target: Path, size: int) -> None:
    class Truncates(Server):
        """Ends one file at its half."""

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            if node is bad and offset + length > size // 2:
                return self.status(number, wire.FX_EOF)
            return super().data(number, node, offset, length)

    bad = Node(b"b" * size)
    entry_fails(Truncates({**GOOD, b"bad": bad}), target, "were promised")


@pytest.mark.parametrize("size", [10, 20_000])
def test_empty_data_before_the_end_fails_the_file(target: Path, size: int) -> None:
    class GivesNothing(Server):
        """Gives data of length zero."""

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            empty = node is bad and offset + length >= size
            return [packet(wire.DATA, number, string(b""))] if empty else super().data(number, node, offset, length)

    bad = Node(b"b" * size)
    entry_fails(GivesNothing({**GOOD, b"bad": bad}), target, "were promised")


@pytest.mark.parametrize("size", [0, 10, 20_000])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mtime": 1}, "modified"),
        ({"data": b"another size"}, "size changed"),
        ({"mode": stat.S_IFIFO | 0o644}, "no regular file"),
        ({"mode": stat.S_IFDIR | 0o755}, "no regular file"),
        ({"mode": stat.S_IFCHR | 0o666}, "no regular file"),
    ],
)
def test_an_open_file_that_is_not_what_was_listed_fails(
    target: Path, size: int, change: dict[str, Any], reason: str
) -> None:
    class Switches(Server):
        """Shows other attributes once a file is open."""

        def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            node = self.handles[handle]
            if node is bad:
                node = Node(**{"data": bad.data, "mode": bad.mode, "mtime": bad.mtime, **change})
            assert isinstance(node, Node)
            return [packet(wire.ATTRS, number, attributes(node))]

    bad = Node(b"b" * size)
    entry_fails(Switches({**GOOD, b"bad": bad}), target, reason)


def test_a_file_that_changes_after_a_short_read_is_noticed(target: Path) -> None:
    class ChangesLate(Server):
        """Gives half of a read, and changes the file before the rest is asked for."""

        shortened = False

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            if node is bad and not self.shortened:
                self.shortened = True
                return super().data(number, node, offset, length // 2)
            if node is bad:
                bad.mtime += 1
            return super().data(number, node, offset, length)

    bad = Node(b"b" * 1000)
    entry_fails(ChangesLate({**GOOD, b"bad": bad}), target, "modified")


def test_one_read_error_among_many_fails_one_file(target: Path) -> None:
    class Fails(Server):
        """Has one bad block."""

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            if node is bad and offset == 8192:
                return self.status(number, wire.FX_FAILURE, b"Input/output\nerror")
            return super().data(number, node, offset, length)

    bad = Node(b"b" * 100_000)
    entry_fails(Fails({**GOOD, b"bad": bad}), target, "could not be read")


@pytest.mark.parametrize("mode", [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFLNK])
def test_what_is_no_regular_file_is_never_opened(target: Path, mode: int) -> None:
    class Watches(Server):
        """Remembers what was opened."""

        def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
            assert path != b"/c/bad"
            return super().open(number, path, rest)

    entry_fails(Watches({**GOOD, b"bad": Node(mode=mode | 0o644)}), target, "bad: It is")


def test_set_id_bits_and_impossible_times_do_no_harm(target: Path) -> None:
    stage_from(Server({b"a": Node(b"a", mode=stat.S_IFREG | 0o7777, mtime=2**32 - 1)}), target)
    assert stat.S_IMODE((target / "a").stat().st_mode) & 0o7000 == 0


def test_attributes_that_are_not_told_are_asked_for(target: Path) -> None:
    class TellsNothing(Server):
        """Lists names without attributes."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [(name, struct.pack(">I", 0)) for name in self.files]

    stage_from(TellsNothing(dict(GOOD)), target)
    assert landed(target) == {name: node.data for name, node in GOOD.items()}


def test_escapes_in_names_never_reach_a_message(target: Path) -> None:
    name = "\x1b[2Jevil\u202e\u2028\n".encode()
    with pytest.raises(IncompleteStage) as caught:
        stage_from(Server({**GOOD, name: Node(mode=stat.S_IFDIR | 0o755)}), target)
    refused_as_one_line(caught.value)


def test_a_close_that_is_refused_changes_nothing(target: Path) -> None:
    class RefusesClose(Server):
        """Fails to close."""

        def close_handle(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            super().close_handle(number, handle, rest)
            return self.status(number, wire.FX_FAILURE)

    stage_from(RefusesClose(dict(GOOD)), target)
    assert landed(target) == {name: node.data for name, node in GOOD.items()}
