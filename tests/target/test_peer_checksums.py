"""``verify="sha256"``: every file is compared with a checksum file that the peer collected, before it is published."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage import LocalPeer, Reason, RemotePeer, StageError, StageOptions, StageReport
from peerstage.errors import ConnectionLost, IncompleteStage, NothingToStage, RemoteError
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, peer_checksums
from peerstage.testing import MemoryFile, MemoryHost, MemoryPeer, MemoryTransport, memory_peer
from peerstage.testing.contract import files_in
from peerstage.transport.base import Transport
from support.child_link import ChildLink
from support.examples import examples
from support.quick import quick_directory

MIB = 1 << 20
NAME = "SHA256SUMS"
VERIFY = StageOptions(verify="sha256", checksums=NAME, durable=False)

CONTENT = {b"a": b"content of a", b"b": bytes(1000), b"empty": b""}


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checksums_of(files: dict[bytes, bytes], prefix: bytes = b"") -> bytes:
    """Return what ``sha256sum *`` writes about *files*, whose names need no escape."""
    return b"".join(b"%s  %s%s\n" % (digest_of(data).encode(), prefix, name) for name, data in files.items())


def peer_with(files: dict[bytes, Any], checksums: bytes | MemoryFile | None, **options: Any) -> MemoryPeer:
    """Return a peer whose checksum file is collected first, last or in between, as its name sorts."""
    listed = dict(files) if checksums is None else {**files, NAME.encode(): checksums}
    return memory_peer(listed, **{"stage": VERIFY, **options})


def failures_of(peer: RemotePeer, target: Path) -> dict[str, Reason | None]:
    """Stage, and return the reason for every entry that is not staged."""
    with pytest.raises(IncompleteStage) as failed:
        peer.stagePeer(str(target))
    assert failed.value.report is not None
    return {file.name: file.reason for file in failed.value.report.failed}


def report_of(peer: RemotePeer | LocalPeer, target: Path) -> StageReport:
    peer.stagePeer(str(target))
    assert isinstance(peer.last_report, StageReport)
    return peer.last_report


# Files that are as the peer says


@pytest.mark.parametrize("name", ["0-first", "z-last", NAME])
def test_files_are_staged_whether_the_checksum_file_comes_first_or_last(target: Path, name: str) -> None:
    files = {**CONTENT, os.fsencode(name): checksums_of(CONTENT)}
    ordered = dict(sorted(files.items()))
    report = report_of(memory_peer(ordered, stage=StageOptions(verify="sha256", checksums=name)), target)
    assert files_in(target) == files
    assert {file.name.encode(): file.sha256 for file in report.files} == {n: digest_of(d) for n, d in files.items()}
    assert StageReport.from_json(report.to_json()) == report
    assert report.verify == "sha256"


@pytest.mark.parametrize("form", ["binary", "./", "upper", "comment", "others", "twice"])
def test_forms_of_the_checksum_file_that_sha256sum_accepts_are_accepted(target: Path, form: str) -> None:
    plain = checksums_of(CONTENT)
    checksums = {
        "binary": plain.replace(b"  ", b" *"),
        "./": checksums_of(CONTENT, b"./"),
        "upper": b"".join(line[:64].upper() + line[64:] for line in plain.splitlines(keepends=True)),
        "comment": b"# collected\n" + plain,
        "others": plain + checksums_of({b"../x": b"", b"/etc/passwd": b"", b"sub/a": b"", b"missing": b""}),
        "twice": plain + plain,
    }[form]
    assert peer_with(CONTENT, checksums).stagePeer(str(target)) == 4


def test_escaped_names_are_compared(target: Path) -> None:
    files = {b"new\nline": b"1", b"back\\slash": b"2"}
    checksums = b"".join(
        b"\\%s  %s\n" % (digest_of(data).encode(), name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n"))
        for name, data in files.items()
    )
    assert peer_with(files, checksums).stagePeer(str(target)) == 3


def test_an_empty_indicator_needs_no_digest_since_it_is_created_last(target: Path) -> None:
    indicators = {b"cback.collect": b"", b"cback.stage": b""}
    assert peer_with({**CONTENT, **indicators}, checksums_of(CONTENT)).stagePeer(str(target)) == 6


def test_an_indicator_that_has_content_needs_a_digest(target: Path) -> None:
    peer = peer_with({**CONTENT, b"cback.collect": b"x"}, checksums_of(CONTENT))
    assert failures_of(peer, target) == {"cback.collect": Reason.NO_DIGEST}


def test_hidden_files_of_a_local_peer_are_compared_and_the_checksum_file_may_be_one(
    target: Path, tmp_path: Path
) -> None:
    collect = tmp_path / "collect"
    collect.mkdir()
    for name, data in {**CONTENT, b".hidden": b"x"}.items():
        (collect / os.fsdecode(name)).write_bytes(data)
    (collect / ".sums").write_bytes(checksums_of(CONTENT))
    peer = LocalPeer("here", str(collect), stage=StageOptions(verify="sha256", checksums=".sums"))
    with pytest.raises(IncompleteStage):
        peer.stagePeer(str(target))
    assert peer.last_report is not None
    assert {file.name: file.reason for file in peer.last_report.failed} == {".hidden": Reason.NO_DIGEST}
    assert set(files_in(target)) == {*CONTENT, b".sums"}


def test_files_that_are_left_out_need_no_digest_and_the_checksum_file_may_be_larger_than_they(target: Path) -> None:
    options = StageOptions(verify="sha256", checksums=NAME, exclude="*.tmp", max_size=100)
    files = {b"a": b"a", b"b.tmp": b"b", b"large": bytes(101)}
    sums = checksums_of({b"a": b"a", b"unknown": b""})
    report = report_of(peer_with(files, sums, stage=options), target)
    assert len(sums) > 100
    assert files_in(target) == {b"a": b"a", NAME.encode(): sums}
    assert {file.name for file in report.left_out} == {"b.tmp", "large"}


# Files that are not


def test_a_file_that_differs_fails_and_the_old_one_stays(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    peer = peer_with({**CONTENT, b"a": b"content of A"}, checksums_of(CONTENT))
    assert failures_of(peer, target) == {"a": Reason.DIGEST_MISMATCH}
    assert files_in(target) == {**CONTENT, b"a": b"old", NAME.encode(): checksums_of(CONTENT)}


def test_a_file_without_a_digest_fails(target: Path) -> None:
    peer = peer_with({**CONTENT, b"new": b"", b"other": b"x"}, checksums_of(CONTENT))
    assert failures_of(peer, target) == {"new": Reason.NO_DIGEST, "other": Reason.NO_DIGEST}
    assert files_in(target) == {**CONTENT, NAME.encode(): checksums_of(CONTENT)}


@pytest.mark.parametrize("wrong_first", [False, True])
def test_of_two_digests_one_is_wrong(target: Path, wrong_first: bool) -> None:
    lines = [checksums_of(CONTENT), checksums_of({b"a": b"other"})]
    checksums = b"".join(reversed(lines) if wrong_first else lines)
    assert failures_of(peer_with(CONTENT, checksums), target) == {"a": Reason.DIGEST_MISMATCH}


def test_a_file_that_failed_to_arrive_keeps_its_own_reason(target: Path) -> None:
    error = RemoteError("Permission denied.", reason=Reason.PERMISSION_DENIED)
    peer = peer_with({**CONTENT, b"x": MemoryFile(error=error)}, checksums_of(CONTENT))
    assert failures_of(peer, target) == {"x": Reason.PERMISSION_DENIED}


@examples(25)
@given(st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), st.binary(max_size=3), max_size=3), st.data())
def test_what_is_published_is_what_the_checksum_file_says(files: dict[bytes, bytes], data: Any) -> None:
    listed = data.draw(st.lists(st.tuples(st.sampled_from(sorted(files) or [b"a"]), st.binary(max_size=3)), max_size=4))
    checksums = b"".join(checksums_of({name: content}) for name, content in listed)
    confirmed = {
        name: content for name, content in files.items() if {known for n, known in listed if n == name} == {content}
    }
    with quick_directory() as directory:
        try:
            peer_with(files, checksums).stagePeer(str(directory))
        except IncompleteStage:
            assert confirmed != files
        assert files_in(directory) == {**confirmed, NAME.encode(): checksums}


# The checksum file


def error_of(peer: RemotePeer, target: Path) -> StageError:
    """Stage, and return the error; nothing may be published."""
    (target / "a").write_bytes(b"old")
    with pytest.raises(StageError) as failed:
        peer.stagePeer(str(target))
    assert files_in(target) == {b"a": b"old"}
    assert failed.value.path == NAME
    assert failed.value.report is None
    return failed.value


@pytest.mark.usefixtures("leaves_nothing")
def test_without_the_checksum_file_nothing_is_published(target: Path) -> None:
    error = error_of(peer_with(CONTENT, None), target)
    assert error.reason is Reason.CHECKSUM_FILE_MISSING


def test_a_hidden_checksum_file_of_a_remote_peer_is_said_to_be_hidden(target: Path) -> None:
    options = StageOptions(verify="sha256", checksums=".sums")
    peer = memory_peer({**CONTENT, b".sums": checksums_of(CONTENT)}, stage=options)
    with pytest.raises(StageError, match="hidden files") as failed:
        peer.stagePeer(str(target))
    assert failed.value.reason is Reason.CHECKSUM_FILE_MISSING


@pytest.mark.parametrize(
    "file",
    [
        MemoryFile(mode=stat.S_IFDIR | 0o755),
        MemoryFile(error=RemoteError("Permission denied.", reason=Reason.PERMISSION_DENIED)),
        MemoryFile(b"short", listed_size=100),
    ],
)
def test_a_checksum_file_that_cannot_be_staged_is_named_with_the_reason(target: Path, file: MemoryFile) -> None:
    error = error_of(peer_with(CONTENT, file), target)
    assert error.reason is Reason.CHECKSUM_FILE_MISSING
    assert any(word in str(error) for word in ("regular file", "Permission denied", "bytes"))


@pytest.mark.parametrize(
    "checksums",
    [
        b"\0" * 100,
        b"x" * MIB,
        b"\n",
        os.urandom(1000),
        checksums_of(CONTENT)[:-1],
        checksums_of(CONTENT).replace(b"\n", b"\r\n"),
        checksums_of(CONTENT) + b"d41d8cd98f00b204e9800998ecf8427e  md5\n",
        checksums_of(CONTENT) + b"SHA256 (a) = " + b"0" * 64 + b"\n",
        b"\\" + b"0" * 64 + b"  bad\\escape\n",
        b"0" * 64 + b"  " + b"n" * 10_000 + b"\n",
    ],
)
def test_a_checksum_file_in_another_format_is_an_error(target: Path, checksums: bytes) -> None:
    error = error_of(peer_with(CONTENT, checksums), target)
    assert error.reason is Reason.CHECKSUM_FILE_INVALID
    assert len(str(error)) < 1000
    assert str(error).isprintable()


def test_a_checksum_file_that_is_too_large_is_not_read(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_checksums, "MAX_BYTES", 100)
    error = error_of(peer_with(CONTENT, checksums_of(CONTENT)), target)
    assert error.reason is Reason.CHECKSUM_FILE_INVALID


def test_an_empty_checksum_file_confirms_nothing(target: Path) -> None:
    assert set(failures_of(peer_with(CONTENT, b""), target).values()) == {Reason.NO_DIGEST}


def test_a_peer_without_files_has_nothing_to_stage(target: Path) -> None:
    with pytest.raises(NothingToStage):
        memory_peer({}, stage=VERIFY).stagePeer(str(target))


# Two versions in one file


def version(seed: int) -> bytes:
    """Return one of several versions that a resumed transfer cannot tell apart: they differ between its samples."""
    content = bytearray(3 * MIB)
    for start in (MIB // 2, 5 * MIB // 2):
        content[start : start + 100] = random.Random(seed).randbytes(100)
    return bytes(content)


class ReplacedFile(MemoryHost):
    """A host that loses the first connections after 2 MiB, and each time has the next version of ``big`` then."""

    def __init__(self, versions: list[bytes]) -> None:
        files = {b"a": b"a", b"big": MemoryFile(versions[0], mtime=1)}
        super().__init__({"/collect": files}, lose_after=2 * MIB, faulty_connections=len(versions) - 1)
        self.versions = versions

    def connect(self) -> Transport:
        content = self.versions[min(self.connection_count, len(self.versions) - 1)]
        self.directories[b"/collect"][b"big"] = MemoryFile(content, mtime=1)
        sums = checksums_of({b"a": b"a", b"big": content})
        self.directories[b"/collect"][NAME.encode()] = MemoryFile(sums, mtime=1)
        return super().connect()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_resumed_file_that_mixes_two_versions_is_fetched_once_more_as_a_whole(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = ReplacedFile([version(1), version(2)])
    report = report_of(MemoryPeer(host, stage=VERIFY), target)
    assert (target / "big").read_bytes() == version(2)
    assert {file.name: file.outcome for file in report.files} == {"a": "resumed", "big": "staged", NAME: "staged"}
    assert report.resumed_bytes == 1
    assert "fetched once more" in caplog.text


def test_without_digests_such_a_mixture_is_not_detected(target: Path) -> None:
    """This shows that the test above tests something."""
    MemoryPeer(ReplacedFile([version(1), version(2)])).stagePeer(str(target))
    assert (target / "big").read_bytes() not in (version(1), version(2))


def test_a_file_that_arrived_whole_is_not_fetched_again(target: Path) -> None:
    written: list[int] = []
    files = {b"a": MemoryFile(b"a"), NAME.encode(): MemoryFile(checksums_of({b"a": b"b"}))}
    transport = MemoryTransport({b"/c": files}, before_write=written.append)
    with pytest.raises(IncompleteStage):
        stage(transport, b"/c", DirectoryTarget(str(target), options=VERIFY))
    assert len(written) == 2


def test_a_child_process_sends_only_the_resumed_file_that_differs_once_more(target: Path) -> None:
    """Not what is confirmed, nor what arrived whole and differs: that would differ again."""
    old, new = version(1), version(2)
    sums = checksums_of({b"a": b"a", b"big": new, b"whole": b"other"})

    def lose(written: int) -> None:
        if written >= 2 * MIB:
            raise ConnectionLost("lost")

    def files_with(big: bytes) -> dict[bytes, dict[bytes, MemoryFile]]:
        contents = {b"big": big, b"a": b"a", b"whole": b"whole", NAME.encode(): sums}
        return {b"/c": {name: MemoryFile(data, mtime=1) for name, data in contents.items()}}

    with DirectoryTarget(str(target), options=VERIFY) as staging_target:
        link = ChildLink(staging_target, tries=2)
        with pytest.raises(ConnectionLost):
            MemoryTransport(files_with(old), before_write=lose).pull(b"/c", link.child_target)
        MemoryTransport(files_with(new)).pull(b"/c", link.child_target)
        assert staging_target.start_over_differing_files() == 1
        link = ChildLink(staging_target)
        MemoryTransport(files_with(new)).pull(b"/c", link.child_target)
        assert link.sent_bytes == len(new)
        assert staging_target.start_over_differing_files() == 0
        staging_target.commit()
    assert files_in(target) == {b"big": new, b"a": b"a", NAME.encode(): sums}


@examples(15)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.booleans())
def test_whatever_the_peer_replaces_between_connections_only_confirmed_files_are_published(
    seeds: list[int], checksums_first: bool
) -> None:
    host = ReplacedFile([version(seed) for seed in seeds])
    if checksums_first:
        host.directories[b"/collect"] = {NAME.encode(): MemoryFile(), **host.directories[b"/collect"]}
    with quick_directory() as directory:
        try:
            MemoryPeer(host, stage=VERIFY).stagePeer(str(directory))
        except IncompleteStage as exc:
            assert exc.report is not None
            assert {file.reason for file in exc.report.failed} == {Reason.DIGEST_MISMATCH}
            assert len(set(seeds)) > 1
        published = files_in(directory)
    sums = published.pop(NAME.encode())
    assert set(checksums_of(published).splitlines()) <= set(sums.splitlines())


class Liar(ReplacedFile):
    """The same host with a wrong digest."""

    def connect(self) -> Transport:
        transport = super().connect()
        sums = checksums_of({b"a": b"a", b"big": b"other"})
        self.directories[b"/collect"][NAME.encode()] = MemoryFile(sums, mtime=1)
        return transport


def test_a_file_that_differs_again_after_it_was_fetched_once_more_fails(target: Path) -> None:
    host = Liar([version(1), version(2)])
    assert failures_of(MemoryPeer(host, stage=VERIFY), target) == {"big": Reason.DIGEST_MISMATCH}
    assert host.connection_count == 2


@pytest.mark.parametrize("is_right", [True, False])
def test_a_linked_file_that_the_peer_replaced_unnoticed_is_fetched(
    target: Path, tmp_path: Path, is_right: bool
) -> None:
    """The manifest of the earlier directory is missing, so that the digest of the link is that of its content."""
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    files = {b"same": MemoryFile(b"same", mtime=10**9), b"replaced": MemoryFile(b"new", mtime=10**9)}
    for name, content in (("same", b"same"), ("replaced", b"old")):
        (earlier / name).write_bytes(content)
        (earlier / name).chmod(0o644)
        os.utime(earlier / name, (10**9, 10**9))
    sums = checksums_of({b"same": b"same", b"replaced": b"new" if is_right else b"other"})
    options = StageOptions(verify="sha256", checksums=NAME, preserve_times=True, link_dest=str(earlier), durable=False)
    peer = peer_with(files, sums, stage=options)
    if is_right:
        outcomes = {file.name: file.outcome for file in report_of(peer, target).files}
        assert outcomes == {"same": "linked", "replaced": "staged", NAME: "staged"}
        assert files_in(target) == {b"same": b"same", b"replaced": b"new", NAME.encode(): sums}
    else:
        assert failures_of(peer, target) == {"replaced": Reason.DIGEST_MISMATCH}
    assert (earlier / "replaced").read_bytes() == b"old"
