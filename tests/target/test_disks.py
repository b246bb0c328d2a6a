"""Disks that are full, read-only, removed or broken: the old file stays, nothing is left, the error gives advice."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from target_cases import MIB, FailsAt, memory_peer, memory_peer_of, private_directory_of, requires_mount, stage_into

from peerstage.errors import EntryError, StageError, TargetError
from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget, durability
from peerstage.testing.contract import files_in
from support.filesystems import tmpfs
from support.incoming import admit_one

CODES = [errno.EIO, errno.ENOSPC, errno.EDQUOT]


#: The reason of each error number.
REASONS = {
    errno.ENOSPC: Reason.NO_SPACE,
    errno.EDQUOT: Reason.QUOTA_EXCEEDED,
    errno.EROFS: Reason.READ_ONLY_TARGET,
    errno.ENOENT: Reason.TARGET_MISSING,
    errno.ENOTDIR: Reason.TARGET_NOT_A_DIRECTORY,
    errno.EIO: Reason.LOCAL_IO_ERROR,
}


def check(raised: pytest.ExceptionInfo[TargetError], target: Path, code: int, reason: Reason | None = None) -> None:
    """Check that the error is a `TargetError`, is not transient, and names the peer, the target and the reason."""
    assert type(raised.value) is TargetError
    assert (raised.value.errno, raised.value.transient) == (code, False)
    assert raised.value.reason is (reason or REASONS[code])
    assert str(raised.value).startswith(f"peer {target}: ")
    assert "\n" not in str(raised.value)


# Small disks


@pytest.mark.usefixtures("root")
@requires_mount
def test_too_little_space_is_reported_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as target:
        (target / "old").write_bytes(b"old")
        pieces: list[int] = []
        with pytest.raises(TargetError, match=r"bytes are to be staged, but only .* are free") as raised:
            stage_into(target, memory_peer_of({b"old": b"x" * 2 * MIB}, before_write=pieces.append))
        check(raised, target, errno.ENOSPC)
        assert pieces == []
        assert files_in(target) == {b"old": b"old"}


@pytest.mark.usefixtures("root")
@requires_mount
def test_too_few_inodes_are_reported_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=20") as target:
        pieces: list[int] = []
        files = {b"f%d" % number: b"x" for number in range(40)}
        with pytest.raises(TargetError, match=r"40 files are to be staged, but only .* inodes are free") as raised:
            stage_into(target, memory_peer_of(files, before_write=pieces.append))
        check(raised, target, errno.ENOSPC, Reason.NO_INODES)
        assert pieces == []
        assert files_in(target) == {}


@pytest.mark.usefixtures("root")
@requires_mount
def test_files_that_just_fit_are_staged(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m,nr_inodes=20") as target:
        files = {b"f%d" % number: b"x" * (MIB // 16) for number in range(12)}
        stage_into(target, memory_peer_of(files))
        assert files_in(target) == files


@pytest.mark.usefixtures("root")
@requires_mount
def test_received_bytes_are_not_counted_again(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m,nr_inodes=10") as target:
        entries = [Entry(b"f%d" % number, 100_000, 0o644, 1) for number in range(7)]
        with DirectoryTarget(str(target)) as staging_target:
            for file in staging_target.admit(entries):
                file.write(0, [b"x" * 90_000])
            assert len(staging_target.admit(entries)) == 7
            with pytest.raises(TargetError, match=r"1070000 bytes are to be staged, but only .* are free"):
                staging_target.admit([Entry(b"big", 1_000_000)])
            staging_target.refuse(b"big", EntryError("It is too large.", reason=Reason.ENTRY_UNREADABLE))
            with pytest.raises(TargetError, match=r"4 files are to be staged, but only .* inodes are free"):
                staging_target.admit([Entry(b"empty%d" % number, 0) for number in range(4)])


@pytest.mark.usefixtures("root")
@requires_mount
def test_a_disk_that_fills_up_during_the_run_keeps_the_old_file(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as target:
        (target / "a").write_bytes(b"old")

        def fill(written: int) -> None:
            if written == 0:
                with pytest.raises(OSError, match="No space"):
                    (target / "filler").write_bytes(b"x" * 2 * MIB)

        with pytest.raises(TargetError, match="Free some space") as raised:
            stage_into(target, memory_peer_of({b"good": b"", b"a": b"x" * (MIB // 2)}, before_write=fill))
        check(raised, target, errno.ENOSPC)
        (target / "filler").unlink()
        assert files_in(target) == {b"a": b"old"}
        stage_into(target, memory_peer(a=b"new"))
        assert files_in(target) == {b"a": b"new"}


@pytest.mark.usefixtures("root")
@requires_mount
@pytest.mark.parametrize("free", range(4))
def test_a_disk_that_runs_out_of_inodes_at_any_step_leaves_nothing(tmp_path: Path, free: int) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=12") as target:
        taken = 0
        while os.statvfs(target).f_ffree > free:
            (target / f"taken{taken}").touch()
            taken += 1
        files = {b"f%d" % number: b"x" for number in range(4)}
        with pytest.raises(TargetError) as raised:
            stage_into(target, memory_peer_of(files))
        check(raised, target, errno.ENOSPC, Reason.NO_INODES)
        assert set(files_in(target)) == {b"taken%d" % number for number in range(taken)}
        assert os.statvfs(target).f_ffree == free


@pytest.mark.usefixtures("root")
@requires_mount
def test_a_disk_that_runs_out_of_inodes_during_the_run_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=12") as target:

        def take_inodes(written: int) -> None:
            number = 0
            while os.statvfs(target).f_ffree:
                (target / f"taken{number}").touch()
                number += 1

        with pytest.raises(TargetError) as raised:
            stage_into(target, memory_peer_of({b"a": b"x", b"b": b"x", b"c": b"x"}, before_write=take_inodes))
        check(raised, target, errno.ENOSPC, Reason.NO_INODES)
        assert all(name.startswith(b"taken") for name in files_in(target))


@pytest.mark.usefixtures("root")
@requires_mount
def test_a_read_only_target_is_refused_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "ro", "size=1m,ro") as target:
        pieces: list[int] = []
        with pytest.raises(TargetError, match="Mount the target read-write") as raised:
            stage_into(target, memory_peer_of({b"a": b"a"}, before_write=pieces.append))
        check(raised, target, errno.EROFS)
        assert pieces == []


# Targets that do not exist, or are removed


@pytest.mark.parametrize(("kind", "code"), [("missing", errno.ENOENT), ("file", errno.ENOTDIR)])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_target_that_is_not_a_directory_is_refused(tmp_path: Path, kind: str, code: int) -> None:
    (tmp_path / "file").write_bytes(b"file")
    with pytest.raises(TargetError) as raised:
        stage_into(tmp_path / kind, memory_peer(a=b"a"))
    check(raised, tmp_path / kind, code)
    assert files_in(tmp_path) == {b"file": b"file"}


def test_a_target_that_is_a_symlink_to_a_directory_is_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    stage_into(tmp_path / "link", memory_peer(a=b"a"))
    assert files_in(target) == {b"a": b"a"}


@pytest.mark.parametrize("replaced_by", ["nothing", "a directory", "a link"])
def test_a_target_renamed_during_the_run_is_followed_by_its_descriptor(tmp_path: Path, replaced_by: str) -> None:
    target, moved, elsewhere = tmp_path / "target", tmp_path / "moved", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()

    def move(written: int) -> None:
        if not moved.exists():
            target.rename(moved)
            if replaced_by == "a directory":
                target.mkdir()
            elif replaced_by == "a link":
                target.symlink_to(elsewhere)

    stage_into(target, memory_peer_of({b"a": b"a", b"b": b"b"}, before_write=move))
    assert files_in(moved) == {b"a": b"a", b"b": b"b"}
    assert files_in(elsewhere) == {}
    assert not target.exists() or files_in(target) == {}


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_target_that_is_removed_during_the_run_is_not_created_again(target: Path, when: int) -> None:
    def remove(written: int) -> None:
        if written == when:
            shutil.rmtree(target)

    with pytest.raises(TargetError, match="removed during the run") as raised:
        stage_into(target, memory_peer_of({b"a": b"aaa", b"b": b"bbb"}, before_write=remove))
    check(raised, target, errno.ENOENT)
    assert not target.exists()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_private_directory_that_is_removed_during_the_run_publishes_nothing(target: Path) -> None:
    (target / "a").write_bytes(b"old")

    def remove(written: int) -> None:
        if written == 3:
            shutil.rmtree(private_directory_of(target))

    with pytest.raises(TargetError):
        stage_into(target, memory_peer_of({b"a": b"aaa", b"b": b"bbb"}, before_write=remove))
    assert files_in(target) == {b"a": b"old"}


# Disks that break


class ClosesBadly(FailsAt):
    """close(2) that fails for a regular file with content, as on NFS when the data was not written."""

    def __call__(self, fd: int) -> None:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            super().__call__(fd)
        else:
            self.original(fd)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    "name", ["mkdir", "open", "fstatvfs", "pwrite", "pwritev", "fstat", "fchown", "fchmod", "utime", "fsync", "rename"]
)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_disk_that_fails_before_the_first_rename_keeps_all_old_files(
    target: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    (target / "a").write_bytes(b"old")
    owner = Ownership(os.getuid(), os.getgid())

    def stage_two_files() -> None:
        with DirectoryTarget(str(target), ownership=owner, options=StageOptions(preserve_times=True)) as staging_target:
            for incoming in staging_target.admit([Entry(b"a", 6, 0o644, 1), Entry(b"b", 6, 0o644, 1)]):
                incoming.write(0, [b"new"])
                incoming.write(3, [b"n", b"ew"])
                incoming.finish()
            staging_target.commit()

    with monkeypatch.context() as patch:
        patch.setattr(os, name, FailsAt(getattr(os, name), code))
        with pytest.raises(TargetError) as raised:
            stage_two_files()
    assert (raised.value.errno, raised.value.transient, raised.value.path) == (code, False, str(target))
    assert files_in(target) == {b"a": b"old"}
    stage_two_files()
    assert files_in(target) == {b"a": b"newnew", b"b": b"newnew"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_disk_that_fails_on_close_keeps_all_old_files(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    (target / "a").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", ClosesBadly(os.close, code, number=number, takes_effect=True))
        with pytest.raises(TargetError) as raised:
            stage_into(target, memory_peer(a=b"new", b=b"b"))
    check(raised, target, code)
    assert files_in(target) == {b"a": b"old"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_close_that_fails_when_a_run_is_cut_off_does_not_hide_the_cause(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (target / "a").write_bytes(b"old")

    def cut_off(written: int) -> None:
        if written:
            raise StageError("cut off", reason=Reason.LOCAL_FAILURE)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", ClosesBadly(os.close, code, takes_effect=True))
        with pytest.raises(StageError, match="cut off"):
            stage_into(target, memory_peer_of({b"a": b"x" * 100}, chunk_size=10, before_write=cut_off))
    assert files_in(target) == {b"a": b"old"}


@pytest.mark.usefixtures("leaves_nothing")
def test_a_close_that_fails_for_an_abandoned_file_is_ignored(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, DirectoryTarget(str(target)) as staging_target:
        short = admit_one(staging_target, Entry(b"short", 6))
        short.write(0, [b"abc"])
        patch.setattr(os, "close", ClosesBadly(os.close, errno.EDQUOT, takes_effect=True))
        short.finish()
        good = admit_one(staging_target, Entry(b"good", 4))
        good.write(0, [b"good"])
        good.finish()
        staging_target.commit()
    assert files_in(target) == {b"good": b"good"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_rename_that_fails_leaves_each_name_old_or_complete_and_counts_them(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    names = [b"a", b"b", b"c"]
    for name in names:
        (target / os.fsdecode(name)).write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", FailsAt(os.rename, code, number=number))
        with pytest.raises(TargetError) as raised:
            stage_into(target, memory_peer_of(dict.fromkeys(names, b"new")))
    check(raised, target, code)
    assert ("were in the target before are unchanged" in str(raised.value)) == (number == 1)
    assert (f"{number - 1} files had already been replaced" in str(raised.value)) == (number > 1)
    assert files_in(target) == {name: b"new" if at < number - 1 else b"old" for at, name in enumerate(names)}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_directory_that_cannot_be_synced_is_an_error_with_every_name_complete(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (target / "a").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailsAt(os.fsync, code, number=3))
        with pytest.raises(TargetError, match="2 files had already been replaced") as raised:
            stage_into(target, memory_peer(a=b"new", b=b"b"))
    check(raised, target, code)
    assert files_in(target) == {b"a": b"new", b"b": b"b"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_for_directories_is_accepted(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailsAt(os.fsync, code, number=2))
        stage_into(target, memory_peer(a=b"a"))
    assert files_in(target) == {b"a": b"a"}


@pytest.mark.parametrize("code", CODES)
def test_a_syncfs_that_fails_publishes_nothing(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (target / "f0").write_bytes(b"old")
    files = {b"f%d" % number: b"x" for number in range(durability.MAX_FSYNCS + 1)}
    with monkeypatch.context() as patch:
        patch.setattr(durability, "syncfs", FailsAt(durability.syncfs, code))
        with pytest.raises(TargetError) as raised:
            stage_into(target, memory_peer_of(files))
    check(raised, target, code)
    assert files_in(target) == {b"f0": b"old"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_disk_that_fails_in_stat_ends_the_run(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", FailsAt(os.stat, code))
        with pytest.raises(TargetError) as raised:
            stage_into(target, memory_peer(a=b"new"))
    check(raised, target, code)
    assert files_in(target) == {}


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), KeyboardInterrupt()])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_fails_at_its_start_leaves_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    (target / "a").write_bytes(b"old")
    original, calls = os.open, 0

    def open_few(*arguments: Any, **options: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_few)
        with pytest.raises((TargetError, KeyboardInterrupt)) as raised:
            stage_into(target, memory_peer(a=b"new"))
    assert isinstance(raised.value, TargetError) == isinstance(error, OSError)
    assert files_in(target) == {b"a": b"old"}
