"""stagePeer over every transport: what is staged, and how it looks in the target."""

from __future__ import annotations

import os
import pickle
import pwd
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peerstage import BackupPeer, LocalPeer, Reason, RemotePeer, StageError, StageOptions
from peerstage.errors import Cancelled, IncompleteStage
from support.every_transport import CONNECTIONS
from support.files import write_files
from support.sshd import Sshd, free_port


def owner_of_files(peer: RemotePeer) -> int:
    """Return the user id of files for which no ownership is requested."""
    return os.getuid() if peer.localUser is None else pwd.getpwnam(peer.localUser).pw_uid


@pytest.mark.parametrize("target", [None, "", "relative", "/does/not/exist", "/etc/hostname\0", 7])
def test_a_target_that_is_not_an_absolute_path_of_a_directory_is_a_value_error(peer: RemotePeer, target: Any) -> None:
    with pytest.raises(ValueError, match=r"[Tt]arget"):
        peer.stagePeer(target)


def test_a_file_as_the_target_directory_is_a_value_error(peer: RemotePeer, tmp_path: Path) -> None:
    write_files(tmp_path, file=b"")
    with pytest.raises(ValueError, match="directory"):
        peer.stagePeer(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("ownership", "permissions"), [("root", None), ((1,), None), (("a", "b"), None), (None, "640")]
)
def test_ownership_and_permissions_must_be_numbers(
    peer: RemotePeer, target: Path, ownership: Any, permissions: Any
) -> None:
    with pytest.raises(ValueError, match=r"Ownership|Permissions"):
        peer.stagePeer(str(target), ownership, permissions)


def test_on_commit_is_called_in_the_process_of_the_caller_and_can_keep_files_unpublished(
    peer: RemotePeer, collect: Path, target: Path
) -> None:
    write_files(collect, a=b"a", b=b"b")
    processes: list[int] = []

    def refuse() -> None:
        processes.append(os.getpid())
        raise Cancelled("Another run has taken over.")

    peer.on_commit = refuse
    with pytest.raises(Cancelled, match="taken over"):
        peer.stagePeer(str(target))
    assert processes == [os.getpid()]
    assert os.listdir(target) == []
    peer.on_commit = lambda: processes.append(os.getpid())
    assert peer.stagePeer(str(target)) == 2
    assert processes == [os.getpid()] * 2


def test_no_working_directory_is_needed(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, a=b"a")
    peer.workingDir = None
    assert peer.stagePeer(str(target)) == 1


def test_dotfiles_are_not_staged(unprivileged: RemotePeer, target: Path) -> None:
    collect = Path(str(unprivileged.collectDir))
    write_files(collect, a=b"a", **{".hidden": b"", "cback.collect": b""})
    assert unprivileged.stagePeer(str(target)) == 2
    assert sorted(os.listdir(target)) == ["a", "cback.collect"]


def test_the_number_of_files_is_returned_and_counts_replaced_ones(
    peer: RemotePeer, collect: Path, target: Path
) -> None:
    write_files(collect, a=b"1", b=b"2")
    assert peer.stagePeer(str(target)) == 2
    write_files(collect, a=b"new", c=b"3")
    assert peer.stagePeer(str(target)) == 3
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a": b"new", "b": b"2", "c": b"3"}
    assert peer.last_report is not None
    assert peer.last_report.count == 3


@pytest.mark.parametrize("connection", [*CONNECTIONS, "scp-isolated"], indirect=True)  # SCP alone must request times
def test_permissions_and_ownership_are_applied_and_times_are_kept_on_request(
    peer: RemotePeer, collect: Path, target: Path, transport: str
) -> None:
    write_files(collect, a=b"a")
    os.utime(collect / "a", (1_000_000_000, 1_000_000_000))
    (collect / "a").chmod(0o6755)
    peer.stagePeer(str(target))
    found = (target / "a").stat()
    assert stat.S_IMODE(found.st_mode) == 0o755 & ~umask()
    assert found.st_uid == owner_of_files(peer)
    assert found.st_mtime > 1_500_000_000
    owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    peer.stagePeer(str(target), owner, 0o640)
    found = (target / "a").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o640)
    if transport == "rcp":  # an option of the command decides about times
        assert peer.rcpCommand is not None
        peer.rcpCommand += " -p"
    peer.stage = StageOptions(preserve_times=True)
    peer.stagePeer(str(target))
    assert (target / "a").stat().st_mtime == 1_000_000_000


def test_only_selected_files_are_staged(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, **{"a.gz": b"a", "b.gz": b"b" * 100_000, "c.tmp": b"c", "cback.collect": b""})
    if peer.rcpCommand is None:  # the command fails if it finds a directory
        (collect / "lost+found").mkdir()
    peer.stage = StageOptions(exclude=("*.tmp", "lost+found"), max_size=1000)
    assert peer.stagePeer(str(target)) == 2
    assert sorted(path.name for path in target.iterdir()) == ["a.gz", "cback.collect"]
    assert peer.last_report is not None
    left_out = {file.name: str(file.reason) for file in peer.last_report.left_out}
    left_out.setdefault("lost+found", "excluded")
    assert left_out == {"b.gz": "above-max-size", "c.tmp": "excluded", "lost+found": "excluded"}


@pytest.mark.parametrize("connection", [*CONNECTIONS, "scp-isolated"], indirect=True)
def test_files_are_compared_with_the_peers_checksum_file(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, a=b"a" * 3_000_000, empty=b"", changed=b"old", **{"cback.collect": b""})
    checksums = subprocess.run(["sha256sum", "a", "changed", "empty"], cwd=collect, capture_output=True, check=True)
    write_files(collect, SUMS=checksums.stdout, changed=b"new", unknown=b"x")
    peer.stage = StageOptions(verify="sha256", checksums="SUMS")
    with pytest.raises(IncompleteStage) as caught:
        peer.stagePeer(str(target))
    assert caught.value.report is not None
    failed = {entry.name: entry.reason for entry in caught.value.report.failed}
    assert failed == {"changed": Reason.DIGEST_MISMATCH, "unknown": Reason.NO_DIGEST}
    assert sorted(os.listdir(target)) == ["SUMS", "a", "cback.collect", "empty"]
    (collect / "SUMS").unlink()
    with pytest.raises(StageError) as missing:
        peer.stagePeer(str(target))
    assert missing.value.reason is Reason.CHECKSUM_FILE_MISSING


@pytest.mark.parametrize("connection", ["sftp-direct", "scp-direct", "sftp-isolated", "scp-isolated"], indirect=True)
def test_a_linked_file_that_differs_from_the_peers_digest_is_fetched_and_no_other(
    peer: RemotePeer, collect: Path, target: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    write_files(collect, same=b"same" * 100_000, replaced=b"new" * 100_000, fetched=b"x" * 100_000)
    write_files(earlier, same=b"same" * 100_000, replaced=b"old" * 100_000)
    for path in (*collect.iterdir(), *earlier.iterdir()):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    names = [path.name for path in collect.iterdir()]
    checksums = subprocess.run(["sha256sum", *names], cwd=collect, capture_output=True, check=True)
    write_files(collect, SUMS=checksums.stdout)
    peer.stage = StageOptions(verify="sha256", checksums="SUMS", preserve_times=True, link_dest=str(earlier))
    owner = earlier.stat()
    assert peer.stagePeer(str(target), (owner.st_uid, owner.st_gid)) == 4
    assert (target / "replaced").read_bytes() == b"new" * 100_000
    assert (target / "same").samefile(earlier / "same")
    assert peer.last_report is not None
    assert {file.name: file.outcome for file in peer.last_report.files} == {
        "same": "linked",
        **dict.fromkeys(("replaced", "fetched", "SUMS"), "staged"),
    }


@pytest.mark.parametrize("connection", ["sftp-direct", "scp-direct", "scp-isolated"], indirect=True)
def test_the_day_after_a_stage_with_a_manifest_transfers_no_unchanged_file(
    peer: RemotePeer, collect: Path, target: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    write_files(collect, same=b"same" * 100_000, changed=b"old" * 1000)
    for path in collect.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    peer.stage = StageOptions(manifest=True)
    assert peer.stagePeer(str(earlier), (os.getuid(), os.getgid())) == 2
    write_files(collect, changed=b"new" * 2000)
    peer.stage = StageOptions(manifest=True, link_dest=str(earlier))
    assert peer.stagePeer(str(target), (os.getuid(), os.getgid())) == 2
    assert (target / "same").samefile(earlier / "same")
    assert (target / "changed").read_bytes() == b"new" * 2000
    assert peer.last_report is not None
    assert {file.name: file.outcome for file in peer.last_report.files} == {"same": "linked", "changed": "staged"}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_empty_files_count_and_links_to_files_are_followed(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, empty=b"", real=b"real")
    (collect / "link").symlink_to("real")
    assert peer.stagePeer(str(target)) == 3
    assert (target / "link").read_bytes() == b"real"
    assert not (target / "link").is_symlink()


def test_entries_that_cannot_be_staged_raise_after_the_others_were_staged(
    unprivileged: RemotePeer, target: Path, transport: str
) -> None:
    collect = Path(str(unprivileged.collectDir))
    write_files(collect, good=b"good", unreadable=b"secret", other=b"other")
    (collect / "unreadable").chmod(0)
    (collect / "sub").mkdir()
    os.mkfifo(collect / "fifo")
    (collect / "dangling").symlink_to("nowhere")
    (collect / "link-to-directory").symlink_to("sub")
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(collect)
        sock.bind("socket")
        os.chdir("/")
    if transport == "rcp":  # the command's status does not tell which entries failed
        with pytest.raises(StageError, match=r"status 1.*not a regular file"):
            unprivileged.stagePeer(str(target))
        assert list(target.iterdir()) == []
        return
    with pytest.raises(IncompleteStage) as caught:
        unprivileged.stagePeer(str(target))
    report = caught.value.report
    assert report is not None
    assert report is unprivileged.last_report
    assert report.count == 2
    failed = {entry.name for entry in report.failed}
    assert failed == {"unreadable", "sub", "fifo", "dangling", "link-to-directory", "socket"}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"good": b"good", "other": b"other"}
    assert "\n" not in str(caught.value)


def test_an_existing_entry_is_replaced_and_never_opened_or_followed(
    peer: RemotePeer, collect: Path, target: Path, tmp_path: Path
) -> None:
    write_files(tmp_path, elsewhere=b"untouched")
    write_files(collect, link=b"1", fifo=b"2", file=b"3", hard=b"4")
    write_files(target, file=b"old", unrelated=b"unrelated", hard=b"old")
    (target / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(target / "fifo")
    os.link(target / "hard", target / "other-name")
    (target / "extension").mkdir()
    assert peer.stagePeer(str(target)) == 4
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"
    assert [(target / name).read_bytes() for name in ("link", "fifo", "file", "hard")] == [b"1", b"2", b"3", b"4"]
    assert not (target / "link").is_symlink()
    assert (target / "other-name").read_bytes() == b"old"
    assert (target / "unrelated").read_bytes() == b"unrelated"
    assert (target / "extension").is_dir()


def test_an_existing_directory_of_the_name_is_an_error(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, taken=b"1", free=b"2")
    (target / "taken").mkdir()
    with pytest.raises(IncompleteStage, match="taken"):
        peer.stagePeer(str(target))
    assert (target / "taken").is_dir()
    assert (target / "free").read_bytes() == b"2"


def test_a_pickled_peer_stages(peer: RemotePeer, collect: Path, target: Path) -> None:
    write_files(collect, a=b"a")
    copy = pickle.loads(pickle.dumps(peer))
    assert copy.stagePeer(str(target)) == 1
    local = pickle.loads(pickle.dumps(LocalPeer("here", str(collect))))
    assert local.collectDir == str(collect)


def test_a_peer_in_a_with_block_pickles_without_its_connection(peer: RemotePeer, collect: Path) -> None:
    write_files(collect, **{"cback.collect": b""})
    with peer:
        assert peer.checkCollectIndicator()
        copy = pickle.loads(pickle.dumps(peer))
    assert copy.checkCollectIndicator()


def test_the_loop_of_the_cback3_stage_action_works_with_good_and_bad_peers(
    peer: RemotePeer, sshd: Sshd, collect: Path, tmp_path: Path
) -> None:
    write_files(collect, a=b"a", **{"cback.collect": b""})
    local = tmp_path / "local"
    local.mkdir()
    write_files(local, b=b"b", **{"cback.collect": b""})
    not_ready = tmp_path / "not-ready"
    not_ready.mkdir()
    peers: list[BackupPeer] = [
        peer,
        LocalPeer("local", str(local)),
        LocalPeer("not-ready", str(not_ready)),
        RemotePeer("down", str(collect), "/tmp", sshd.user, ssh=sshd.options(port=free_port())),
    ]
    staged = {}
    for backup_peer in peers:
        target = tmp_path / "staging" / "2026" / "11" / "23" / backup_peer.name
        target.mkdir(parents=True)
        try:
            if not backup_peer.checkCollectIndicator():
                continue
            staged[backup_peer.name] = backup_peer.stagePeer(
                targetDir=str(target), ownership=(os.getuid(), os.getgid())
            )
            backup_peer.writeStageIndicator()
        except (ValueError, OSError) as exc:
            staged[backup_peer.name] = exc  # type: ignore[assignment]
    assert staged == {peer.name: 2, "local": 2}
    assert (collect / "cback.stage").exists()
    assert (local / "cback.stage").exists()
