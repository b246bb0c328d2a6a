"""Disks that are full, read-only, gone or broken: the old file stays, nothing is left, the error says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from landing_cases import MIB, FailsAt, may_mount, private_of, serving, serving_names, stage_into

from peerstage.errors import LandingError, StageError
from peerstage.landing import DirectoryLanding, durability
from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership
from peerstage.testing.contract import landed
from support.filesystems import tmpfs

CODES = [errno.EIO, errno.ENOSPC, errno.EDQUOT]


#: What the error numbers of the system mean for a target.
REASONS = {
    errno.ENOSPC: Reason.NO_SPACE,
    errno.EDQUOT: Reason.QUOTA_EXCEEDED,
    errno.EROFS: Reason.READ_ONLY_TARGET,
    errno.ENOENT: Reason.TARGET_MISSING,
    errno.ENOTDIR: Reason.TARGET_NOT_A_DIRECTORY,
    errno.EIO: Reason.LOCAL_IO_ERROR,
}


def check(caught: pytest.ExceptionInfo[LandingError], target: Path, code: int, reason: Reason | None = None) -> None:
    """The error is of the landing, is not tried again, and names the peer, the target and what the system said."""
    assert type(caught.value) is LandingError
    assert (caught.value.errno, caught.value.transient) == (code, False)
    assert caught.value.reason is (reason or REASONS[code])
    assert str(caught.value).startswith(f"peer {target}: ")
    assert "\n" not in str(caught.value)


# Small disks


@pytest.mark.usefixtures("root")
@may_mount
def test_no_room_is_said_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as target:
        (target / "old").write_bytes(b"old")
        pieces: list[int] = []
        with pytest.raises(LandingError, match=r"bytes are to come and .* are free") as caught:
            stage_into(target, serving_names({b"old": b"x" * 2 * MIB}, before_piece=pieces.append))
        check(caught, target, errno.ENOSPC)
        assert pieces == []
        assert landed(target) == {b"old": b"old"}


@pytest.mark.usefixtures("root")
@may_mount
def test_no_inodes_are_said_before_the_first_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=20") as target:
        pieces: list[int] = []
        files = {b"f%d" % number: b"x" for number in range(40)}
        with pytest.raises(LandingError, match=r"40 files are to come and .* inodes are free") as caught:
            stage_into(target, serving_names(files, before_piece=pieces.append))
        check(caught, target, errno.ENOSPC, Reason.NO_INODES)
        assert pieces == []
        assert landed(target) == {}


@pytest.mark.usefixtures("root")
@may_mount
def test_what_just_fits_is_staged(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m,nr_inodes=20") as target:
        files = {b"f%d" % number: b"x" * (MIB // 16) for number in range(12)}
        stage_into(target, serving_names(files))
        assert landed(target) == files


@pytest.mark.usefixtures("root")
@may_mount
def test_what_has_come_already_is_not_counted_again(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m,nr_inodes=10") as target:
        entries = [Entry(b"f%d" % number, 100_000, 0o644, 1) for number in range(7)]
        with DirectoryLanding(str(target)) as landing:
            landing.expect(7, 700_000)
            for entry in entries:
                landing.open(entry).write(0, [b"x" * 90_000])
            landing.expect(7, 700_000)
            with pytest.raises(LandingError, match="are free"):
                landing.expect(7, 1_700_000)
            with pytest.raises(LandingError, match="are free"):
                landing.expect(11, 700_000)


@pytest.mark.usefixtures("root")
@may_mount
def test_a_disk_that_fills_up_meanwhile_leaves_the_old_file(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=1m") as target:
        (target / "a").write_bytes(b"old")

        def fill(written: int) -> None:
            if written == 0:
                with pytest.raises(OSError, match="No space"):
                    (target / "filler").write_bytes(b"x" * 2 * MIB)

        with pytest.raises(LandingError, match="Make room") as caught:
            stage_into(target, serving_names({b"good": b"", b"a": b"x" * (MIB // 2)}, before_piece=fill))
        check(caught, target, errno.ENOSPC)
        (target / "filler").unlink()
        assert landed(target) == {b"a": b"old"}
        stage_into(target, serving(a=b"new"))
        assert landed(target) == {b"a": b"new"}


@pytest.mark.usefixtures("root")
@may_mount
@pytest.mark.parametrize("free", range(4))
def test_a_disk_that_runs_out_of_inodes_at_any_step_leaves_nothing(tmp_path: Path, free: int) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=12") as target:
        taken = 0
        while os.statvfs(target).f_ffree > free:
            (target / f"taken{taken}").touch()
            taken += 1
        files = {b"f%d" % number: b"x" for number in range(4)}
        with pytest.raises(LandingError) as caught:
            stage_into(target, serving_names(files))
        check(caught, target, errno.ENOSPC, Reason.NO_INODES)
        assert set(landed(target)) == {b"taken%d" % number for number in range(taken)}
        assert os.statvfs(target).f_ffree == free


@pytest.mark.usefixtures("root")
@may_mount
def test_a_disk_that_runs_out_of_inodes_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=12") as target:

        def take_inodes(written: int) -> None:
            number = 0
            while os.statvfs(target).f_ffree:
                (target / f"taken{number}").touch()
                number += 1

        with pytest.raises(LandingError) as caught:
            stage_into(target, serving_names({b"a": b"x", b"b": b"x", b"c": b"x"}, before_piece=take_inodes))
        check(caught, target, errno.ENOSPC, Reason.NO_INODES)
        assert all(name.startswith(b"taken") for name in landed(target))


@pytest.mark.usefixtures("root")
@may_mount
def test_a_read_only_target_is_refused_before_the_peer_is_asked(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "ro", "size=1m,ro") as target:
        pieces: list[int] = []
        with pytest.raises(LandingError, match="Mount the target writable") as caught:
            stage_into(target, serving_names({b"a": b"a"}, before_piece=pieces.append))
        check(caught, target, errno.EROFS)
        assert pieces == []


# Targets that are not there, or not any more


@pytest.mark.parametrize(("kind", "code"), [("missing", errno.ENOENT), ("file", errno.ENOTDIR)])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_target_that_is_no_directory_is_refused(tmp_path: Path, kind: str, code: int) -> None:
    (tmp_path / "file").write_bytes(b"file")
    with pytest.raises(LandingError) as caught:
        stage_into(tmp_path / kind, serving(a=b"a"))
    check(caught, tmp_path / kind, code)
    assert landed(tmp_path) == {b"file": b"file"}


def test_a_target_that_is_a_link_to_a_directory_is_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    stage_into(tmp_path / "link", serving(a=b"a"))
    assert landed(target) == {b"a": b"a"}


@pytest.mark.parametrize("replaced_by", ["nothing", "a directory", "a link"])
def test_a_target_that_is_renamed_meanwhile_is_followed_by_its_descriptor(tmp_path: Path, replaced_by: str) -> None:
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

    stage_into(target, serving_names({b"a": b"a", b"b": b"b"}, before_piece=move))
    assert landed(moved) == {b"a": b"a", b"b": b"b"}
    assert landed(elsewhere) == {}
    assert not target.exists() or landed(target) == {}


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_target_that_is_removed_meanwhile_is_not_made_again(target: Path, when: int) -> None:
    def remove(written: int) -> None:
        if written == when:
            shutil.rmtree(target)

    with pytest.raises(LandingError, match="removed meanwhile") as caught:
        stage_into(target, serving_names({b"a": b"aaa", b"b": b"bbb"}, before_piece=remove))
    check(caught, target, errno.ENOENT)
    assert not target.exists()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_private_directory_that_is_removed_meanwhile_publishes_nothing(target: Path) -> None:
    (target / "a").write_bytes(b"old")

    def remove(written: int) -> None:
        if written == 3:
            shutil.rmtree(private_of(target))

    with pytest.raises(LandingError):
        stage_into(target, serving_names({b"a": b"aaa", b"b": b"bbb"}, before_piece=remove))
    assert landed(target) == {b"a": b"old"}


# Disks that break


class ClosesBadly(FailsAt):
    """close(2) that fails for a regular file with content: what was written is not on the disk."""

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
def test_a_disk_that_fails_before_the_first_name_leaves_all_old_files(
    target: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    (target / "a").write_bytes(b"old")
    owner = Ownership(os.getuid(), os.getgid())

    def stage_two_files() -> None:
        with DirectoryLanding(str(target), ownership=owner, preserve_times=True) as landing:
            landing.expect(2, 12)
            for entry in (Entry(b"a", 6, 0o644, 1), Entry(b"b", 6, 0o644, 1)):
                slot = landing.open(entry)
                slot.write(0, [b"new"])
                slot.write(3, [b"n", b"ew"])
                slot.finish()
            landing.commit()

    with monkeypatch.context() as patch:
        patch.setattr(os, name, FailsAt(getattr(os, name), code))
        with pytest.raises(LandingError) as caught:
            stage_two_files()
    assert (caught.value.errno, caught.value.transient, caught.value.path) == (code, False, str(target))
    assert landed(target) == {b"a": b"old"}
    stage_two_files()
    assert landed(target) == {b"a": b"newnew", b"b": b"newnew"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_disk_that_fails_on_close_leaves_all_old_files(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    (target / "a").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", ClosesBadly(os.close, code, number=number, does_it=True))
        with pytest.raises(LandingError) as caught:
            stage_into(target, serving(a=b"new", b=b"b"))
    check(caught, target, code)
    assert landed(target) == {b"a": b"old"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_close_that_fails_when_a_run_is_cut_off_does_not_hide_why(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (target / "a").write_bytes(b"old")

    def cut_off(written: int) -> None:
        if written:
            raise StageError("cut off", reason=Reason.LOCAL_FAILURE)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", ClosesBadly(os.close, code, does_it=True))
        with pytest.raises(StageError, match="cut off"):
            stage_into(target, serving_names({b"a": b"x" * 100}, piece=10, before_piece=cut_off))
    assert landed(target) == {b"a": b"old"}


@pytest.mark.usefixtures("leaves_nothing")
def test_a_close_that_fails_for_a_file_that_is_given_up_does_not_matter(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, DirectoryLanding(str(target)) as landing:
        short = landing.open(Entry(b"short", 6))
        short.write(0, [b"abc"])
        patch.setattr(os, "close", ClosesBadly(os.close, errno.EDQUOT, does_it=True))
        short.finish()
        good = landing.open(Entry(b"good", 4))
        good.write(0, [b"good"])
        good.finish()
        landing.commit()
    assert landed(target) == {b"good": b"good"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_rename_that_fails_leaves_each_name_old_or_complete_and_says_how_many(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    names = [b"a", b"b", b"c"]
    for name in names:
        (target / os.fsdecode(name)).write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", FailsAt(os.rename, code, number=number))
        with pytest.raises(LandingError) as caught:
            stage_into(target, serving_names(dict.fromkeys(names, b"new")))
    check(caught, target, code)
    assert ("were there before are untouched" in str(caught.value)) == (number == 1)
    assert (f"{number - 1} files had been replaced" in str(caught.value)) == (number > 1)
    assert landed(target) == {name: b"new" if at < number - 1 else b"old" for at, name in enumerate(names)}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_directory_that_can_not_be_synced_is_an_error_with_every_name_complete(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (target / "a").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailsAt(os.fsync, code, number=3))
        with pytest.raises(LandingError, match="2 files had been replaced") as caught:
            stage_into(target, serving(a=b"new", b=b"b"))
    check(caught, target, code)
    assert landed(target) == {b"a": b"new", b"b": b"b"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_can_not_sync_directories_will_do(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailsAt(os.fsync, code, number=2))
        stage_into(target, serving(a=b"a"))
    assert landed(target) == {b"a": b"a"}


@pytest.mark.parametrize("code", CODES)
def test_a_syncfs_that_fails_publishes_nothing(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (target / "f0").write_bytes(b"old")
    files = {b"f%d" % number: b"x" for number in range(durability.FEW + 1)}
    with monkeypatch.context() as patch:
        patch.setattr(durability, "syncfs", FailsAt(durability.syncfs, code))
        with pytest.raises(LandingError) as caught:
            stage_into(target, serving_names(files))
    check(caught, target, code)
    assert landed(target) == {b"f0": b"old"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_disk_that_fails_when_a_name_is_looked_up_ends_the_run(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", FailsAt(os.stat, code))
        with pytest.raises(LandingError) as caught:
            stage_into(target, serving(a=b"new"))
    check(caught, target, code)
    assert landed(target) == {}


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), KeyboardInterrupt()])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_fails_while_it_begins_leaves_nothing(
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
        with pytest.raises((LandingError, KeyboardInterrupt)) as caught:
            stage_into(target, serving(a=b"new"))
    assert isinstance(caught.value, LandingError) == isinstance(error, OSError)
    assert landed(target) == {b"a": b"old"}
