"""What comes down, and what becomes visible of it, on real file systems."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import IncompleteStage, LandingError, ProtocolError, StageError
from peerstage.landing import DirectoryLanding, Ranges, durability, slot, sweep
from peerstage.landing import directory as landing_directory
from peerstage.records import Entry, Ownership
from peerstage.staging import stage
from peerstage.testing.contract import landed
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from support.filesystems import tmpfs

MIB = 1 << 20


def serving(**files: bytes) -> MemoryTransport:
    return MemoryTransport({b"/c": {os.fsencode(name): MemoryFile(data, mtime=1) for name, data in files.items()}})


def stage_into(target: Path, transport: Transport, **options: Any) -> None:
    stage(transport, b"/c", str(target), peer="peer", **options)


def private_of(target: Path) -> Path:
    (found,) = [path for path in target.iterdir() if path.name.startswith(".peerstage-")]
    return found


# Ranges


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30))
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for start, length in added:
        new = set(range(start, start + length)) - model
        assert ranges.add(start, start + length) == len(new)
        model |= new
        missing = {byte for low, high in ranges.missing(50) for byte in range(low, high)}
        assert {byte for byte in missing if byte < 50} == set(range(50)) - model
        top = max(model, default=-1) + 1
        assert ranges.covers(top) == (model == set(range(top)))
        assert not ranges.covers(top + 1)


# Before the commit


def test_nothing_is_visible_before_the_commit_and_what_comes_is_private(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot_ = landing.open(Entry(b"name", 6, 0o644))
        slot_.write(0, [b"abc"])
        slot_.write(3, [b"def"])
        slot_.finish()
        private = private_of(target)
        assert [path.name for path in target.iterdir()] == [private.name]
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
        landing.commit()
    assert landed(target) == {b"name": b"abcdef"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, StageError("cut off")])
def test_a_run_that_is_cut_off_publishes_nothing_and_leaves_nothing(target: Path, error: Any) -> None:
    (target / "a").write_bytes(b"old")

    def cut_off(written: int) -> None:
        if written > 100_000:
            raise error

    files = {b"a": MemoryFile(b"x" * 200_000), b"b": MemoryFile(b"y" * 200_000)}
    with pytest.raises(error if isinstance(error, type) else type(error)):
        stage_into(target, MemoryTransport({b"/c": files}, before_piece=cut_off))
    assert landed(target) == {b"a": b"old"}


def test_half_fetched_file_never_takes_its_final_name(target: Path) -> None:
    transport = MemoryTransport({b"/c": {b"short": MemoryFile(b"x" * 10, promised=20), b"good": MemoryFile(b"good")}})
    with pytest.raises(IncompleteStage, match="short") as caught:
        stage_into(target, transport)
    assert landed(target) == {b"good": b"good"}
    assert caught.value.report is not None
    assert [(one.name, one.error is None) for one in caught.value.report.files] == [("short", False), ("good", True)]


def test_a_slot_that_is_finished_with_a_gap_fails(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        gap = landing.open(Entry(b"gap", 10))
        gap.write(0, [b"abc"])
        gap.write(5, [b"defgh"])
        assert list(gap.missing()) == [(3, 5)]
        gap.finish()
        landing.commit()
    assert landed(target) == {}
    assert landing.files[0].error is not None


def test_more_bytes_than_were_promised_end_the_run(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot_ = landing.open(Entry(b"a", 3))
        with pytest.raises(ProtocolError, match="promised"):
            slot_.write(1, [b"abc"])


def test_pieces_of_many_buffers_land_in_their_order(target: Path) -> None:
    pieces = [os.urandom(number % 5) for number in range(3000)]
    with DirectoryLanding(str(target)) as landing:
        slot_ = landing.open(Entry(b"a", sum(map(len, pieces))))
        slot_.write(0, pieces)
        slot_.finish()
        landing.commit()
    assert landed(target) == {b"a": b"".join(pieces)}


def test_interleaved_files_need_few_descriptors(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from peerstage.landing import DirectoryLanding
from peerstage.records import Entry
with DirectoryLanding({str(target)!r}) as landing:
    slots = [landing.open(Entry(b"%d" % n, 9)) for n in range(300)]
    for at in range(0, 9, 3):
        for slot in slots:
            slot.write(at, [b"abc"])
    for slot in slots:
        slot.finish()
    landing.commit()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert landed(target) == {b"%d" % number: b"abcabcabc" for number in range(300)}


# Modes, owners, times


@pytest.mark.parametrize(("umask", "expected"), [(0o000, 0o777), (0o022, 0o755), (0o077, 0o700)])
def test_the_umask_is_kept_and_set_id_bits_are_never_taken(target: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        transport = MemoryTransport({b"/c": {b"a": MemoryFile(b"", stat.S_IFREG | 0o7777)}})
        stage_into(target, transport)
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "a").stat().st_mode) == expected


def test_a_mode_that_the_peer_does_not_tell_is_0600(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"a", 0)).finish()
        landing.commit()
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o600


def test_ownership_that_is_refused_publishes_nothing(public_path: Path) -> None:
    target = public_path / "target"
    target.mkdir()
    target.chmod(0o777)
    (target / "a").write_bytes(b"old")
    (target / "a").chmod(0o666)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            stage_into(target, serving(a=b"new", b=b"b"), ownership=(0, 0))
        except LandingError as exc:
            os.write(writing, str(exc.errno).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == str(errno.EPERM)
    assert landed(target) == {b"a": b"old"}


def test_times_are_kept_to_the_second_if_asked(target: Path) -> None:
    stage_into(target, MemoryTransport({b"/c": {b"a": MemoryFile(b"", mtime=2**32 - 1)}}), preserve_times=True)
    assert (target / "a").stat().st_mtime == 2**32 - 1


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("count", [1, durability.FEW + 1])
def test_files_land_with_and_without_waiting_for_the_disk(target: Path, durable: bool, count: int) -> None:
    files = {f"file{number}": b"x" * number for number in range(count)}
    stage_into(target, serving(**files), durable=durable)
    assert landed(target) == {os.fsencode(name): data for name, data in files.items()}


# Going on


def test_a_second_pull_fetches_only_what_is_missing(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        entry = Entry(b"a", 6, 0o644, 1)
        landing.open(entry).write(0, [b"abc"])
        again = landing.open(entry)
        assert list(again.missing()) == [(3, 6)]
        assert landing.resumed_bytes == 3
        again.write(3, [b"def"])
        again.finish()
        landing.commit()
    assert landed(target) == {b"a": b"abcdef"}


@pytest.mark.parametrize("changed", [Entry(b"a", 7, 0o644, 1), Entry(b"a", 6, 0o644, 2)])
def test_a_file_that_is_another_one_by_then_starts_anew(target: Path, changed: Entry) -> None:
    with DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"a", 6, 0o644, 1)).write(0, [b"abc"])
        again = landing.open(changed)
        assert list(again.missing()) == [(0, changed.size)]
        again.write(0, [b"z" * changed.size])
        again.finish()
        landing.commit()
    assert landed(target) == {b"a": b"z" * changed.size}


# Disks


def test_no_room_is_said_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as target:
        (target / "old").write_bytes(b"old")
        begun: list[int] = []
        files = {b"big": MemoryFile(b"x" * 2 * MIB)}
        with pytest.raises(LandingError, match="bytes are to come") as caught:
            stage_into(target, MemoryTransport({b"/c": files}, before_piece=begun.append))
        assert begun == []
        assert caught.value.errno == errno.ENOSPC
        assert landed(target) == {b"old": b"old"}


def test_no_inodes_are_said_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=20") as target:
        with pytest.raises(LandingError, match="inodes are free"):
            stage_into(target, serving(**{f"f{number}": b"" for number in range(40)}))
        assert landed(target) == {}


def test_a_disk_that_fills_up_meanwhile_leaves_the_old_file(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as target:
        (target / "a").write_bytes(b"old")

        def fill(written: int) -> None:
            if written == 0:
                with pytest.raises(OSError, match="No space"):
                    (target / "filler").write_bytes(b"x" * 2 * MIB)

        files = {b"a": MemoryFile(b"x" * (MIB // 2))}
        with pytest.raises(LandingError, match="Make room") as caught:
            stage_into(target, MemoryTransport({b"/c": files}, before_piece=fill))
        assert not caught.value.transient
        (target / "filler").unlink()
        assert landed(target) == {b"a": b"old"}


def test_a_disk_that_runs_out_of_inodes_meanwhile_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=12") as target:

        def take_inodes(written: int) -> None:
            if written == 0:
                for number in range(12):
                    try:
                        (target / f"taken{number}").touch()
                    except OSError:
                        return

        files = {b"f%d" % number: MemoryFile(b"x") for number in range(3)}
        with pytest.raises(LandingError):
            stage_into(target, MemoryTransport({b"/c": files}, before_piece=take_inodes))
        assert not [name for name in os.listdir(target) if name.startswith((".peerstage", "f"))]


def test_a_read_only_target_is_refused(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "ro", "size=1m,ro") as target, pytest.raises(LandingError, match="writable"):
        stage_into(target, serving(a=b"a"))


def test_a_target_that_is_renamed_meanwhile_is_followed_by_its_descriptor(tmp_path: Path) -> None:
    target, moved = tmp_path / "target", tmp_path / "moved"
    target.mkdir()

    def move(written: int) -> None:
        target.rename(moved)
        target.mkdir()

    stage_into(target, MemoryTransport({b"/c": {b"a": MemoryFile(b"a")}}, before_piece=move))
    assert landed(target) == {}
    assert landed(moved) == {b"a": b"a"}


def test_a_target_that_is_removed_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()

    def remove(written: int) -> None:
        subprocess.run(["rm", "-r", str(target)], check=True)

    with pytest.raises(LandingError, match="removed"):
        stage_into(target, MemoryTransport({b"/c": {b"a": MemoryFile(b"a")}}, before_piece=remove))
    assert not target.exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (slot.os, "pwrite"),
        (landing_directory.os, "fsync"),
        (landing_directory.os, "rename"),
        (landing_directory.os, "fchmod"),
    ],
)
def test_a_disk_that_fails_leaves_the_old_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, code: int
) -> None:
    (target / "a").write_bytes(b"old")

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(LandingError) as caught:
            stage_into(target, serving(a=b"new"))
    assert (caught.value.errno, caught.value.transient) == (code, False)
    assert str(target) in str(caught.value)
    assert landed(target) == {b"a": b"old"}


def test_a_syncfs_that_fails_publishes_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durability, "syncfs", fail)
    with pytest.raises(LandingError):
        stage_into(target, serving(**{f"f{number}": b"x" for number in range(durability.FEW + 1)}))
    assert landed(target) == {}


def test_a_name_that_the_file_system_refuses_is_that_entry_s_error(target: Path) -> None:
    files = {b"x" * 256: MemoryFile(b"x"), b"good": MemoryFile(b"good")}
    with pytest.raises(IncompleteStage, match="refuses the name"):
        stage_into(target, MemoryTransport({b"/c": files}))
    assert landed(target) == {b"good": b"good"}


def test_ownership_is_set_by_descriptor_not_by_name(target: Path) -> None:
    if os.geteuid() == 0:
        stage_into(target, serving(a=b"a"), ownership=Ownership(12345, 54321))
        found = (target / "a").stat()
        assert (found.st_uid, found.st_gid) == (12345, 54321)
    else:
        stage_into(target, serving(a=b"a"), ownership=Ownership(-1, -1))
        assert (target / "a").stat().st_uid == os.getuid()


def test_sweep_of_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LandingError, match="swept"):
        sweep(tmp_path / "missing")
