"""PARITY: what callers of the original rely on, a section a row, on the system's OpenSSH server where it is remote."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peerstage
from peerstage import BackupPeer, LocalPeer, RemotePeer, SSHOptions, StageError
from peerstage.errors import IncompleteStage, LandingError, NothingToStage
from peerstage.reasons import Reason
from peerstage.testing.contract import ODD_NAMES
from support.local_user import apart
from support.programs import program, rcp_command
from support.sshd import Sshd, free_port

REMOTE = ("peer", "/collect", "/tmp", "backup")


PLACES = ["sftp-here", "scp-here", "rcp-here", "sftp-apart", "rcp-apart"]


@pytest.fixture(params=PLACES)
def over_and_where(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The transport of a test that asks for a peer, and whether this process does the work, or a child, where we are
    root one of another local user. To a child SCP is as SFTP is, and the contract has its differences."""
    over, where = request.param.split("-")
    return over, where


@pytest.fixture
def over(over_and_where: tuple[str, str]) -> str:
    return over_and_where[0]


@pytest.fixture
def where(over_and_where: tuple[str, str]) -> str:
    return over_and_where[1]


Way = Callable[[Sshd], dict[str, Any]]


@pytest.fixture
def way(over: str, where: str, public_path: Path) -> Way:
    """How a peer is told to be reached over a transport: for rcp OpenSSH's scp, over the protocol of that name."""

    def options(server: Sshd) -> dict[str, Any]:
        if where == "apart":
            return apart(over, server, public_path)
        how = {"transport": over} if over != "rcp" else {"rcpCommand": rcp_command(server.ssh_arguments())}
        return {"ssh": server.options(), **how}

    return options


@pytest.fixture
def peer(sshd: Sshd, collect: Path, way: Way) -> RemotePeer:
    """A remote peer on the real server, over each transport, here and apart."""
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **way(sshd))


@pytest.fixture
def unprivileged(unprivileged_sshd: Sshd, public_path: Path, way: Way) -> RemotePeer:
    """The same with a login that is not root, and with an empty collect directory of its own."""
    server = unprivileged_sshd
    return RemotePeer(server.host, str(public_path / "collect"), "/tmp", server.user, **way(server))


def owner_of_files(peer: RemotePeer) -> int:
    """Return whose the files are that nobody else is to have (PARITY 10)."""
    return os.getuid() if peer.localUser is None else pwd.getpwnam(peer.localUser).pw_uid


def put(directory: Path, **files: bytes) -> None:
    for name, data in files.items():
        (directory / name).write_bytes(data)


# 1. Construction


def test_01_every_call_of_the_original_and_its_successor_is_accepted() -> None:
    RemotePeer("peer", "/collect", "/tmp", "backup")
    RemotePeer("peer", "/collect", "/tmp", "backup", "/usr/bin/scp -B", "root")
    peer = RemotePeer("peer", "/collect", "/tmp", "backup", "/usr/bin/scp -B", "root", "/usr/bin/ssh", "cback3", "all")
    assert (peer.name, peer.collectDir, peer.workingDir, peer.remoteUser) == REMOTE
    assert (peer.rcpCommand, peer.localUser, peer.rshCommand, peer.cbackCommand) == (
        "/usr/bin/scp -B",
        "root",
        "/usr/bin/ssh",
        "cback3",
    )
    assert peer.ignoreFailureMode == "all"
    RemotePeer("peer", None, None, "backup")


def test_01_names_and_order_of_the_arguments_are_the_original_s() -> None:
    positional = [
        name
        for name, parameter in inspect.signature(RemotePeer).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == [
        "name",
        "collectDir",
        "workingDir",
        "remoteUser",
        "rcpCommand",
        "localUser",
        "rshCommand",
        "cbackCommand",
        "ignoreFailureMode",
    ]
    assert list(inspect.signature(LocalPeer).parameters) == ["name", "collectDir", "ignoreFailureMode"]


@pytest.mark.parametrize("kind", [RemotePeer, LocalPeer, BackupPeer])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("stagePeer", ["targetDir", "ownership", "permissions"]),
        ("checkCollectIndicator", ["collectIndicator"]),
        ("writeStageIndicator", ["stageIndicator", "ownership", "permissions"]),
    ],
)
def test_01_names_and_order_of_the_methods_arguments_are_the_original_s(
    kind: type, method: str, arguments: list[str]
) -> None:
    assert list(inspect.signature(getattr(kind, method)).parameters)[1:] == arguments


def test_01_the_first_failure_in_the_original_s_order_wins() -> None:
    wrong: dict[str, Any] = {
        "name": "",
        "collectDir": "relative",
        "workingDir": "relative",
        "remoteUser": "",
        "localUser": "",
        "rcpCommand": "",
        "rshCommand": "",
        "cbackCommand": "",
        "ignoreFailureMode": "sometimes",
    }
    words = ["Peer name", "Collect", "Working", "Remote user", "Local user", "RCP", "RSH", "cback", "Ignore failure"]
    right = {"name": "peer", "collectDir": "/c", "workingDir": "/w", "remoteUser": "backup"}
    for name, word in zip(list(wrong), words, strict=True):
        with pytest.raises(ValueError, match=word):
            RemotePeer(**wrong)
        del wrong[name]
        wrong = {**wrong, **({name: right[name]} if name in right else {})}


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", None),
        ("collectDir", "relative"),
        ("workingDir", ""),
        ("remoteUser", "-x"),
        ("localUser", ""),
        ("rcpCommand", "   "),
        ("rshCommand", ""),
        ("cbackCommand", " "),
        ("ignoreFailureMode", "often"),
    ],
)
def test_01_every_assignment_is_checked_and_a_refused_one_changes_nothing(attribute: str, value: Any) -> None:
    peer = RemotePeer(*REMOTE)
    before = getattr(peer, attribute)
    with pytest.raises(ValueError, match=r"must|may not|can not"):
        setattr(peer, attribute, value)
    assert getattr(peer, attribute) == before


# 2. Names


@pytest.mark.parametrize(
    "name", [None, "", "  ", "-oProxyCommand=x", "a b", "a;b", "$(id)", "a`b`", "a\nb", "a|b", "a\0"]
)
def test_02_a_name_that_a_shell_or_an_option_parser_would_misread_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="Peer name"):
        RemotePeer(name, "/c", "/w", "backup")
    with pytest.raises(ValueError, match="Peer name"):
        LocalPeer(name, "/c")


@pytest.mark.parametrize(
    "name", ["db1", "db1.example.com", "192.0.2.7", "::1", "[2001:db8::7]", "fe80::1%eth0", "my_host"]
)
def test_02_addresses_names_and_aliases_pass(name: str) -> None:
    assert RemotePeer(name, "/c", "/w", "backup").name == name


@pytest.mark.parametrize("user", [None, "", "-l", "a b", "a;b", "a\nb"])
def test_02_remote_user_is_required_and_safe(user: Any) -> None:
    with pytest.raises(ValueError, match="Remote user"):
        RemotePeer("peer", "/c", "/w", user)


@pytest.mark.parametrize("path", ["/a\0b", "/a\ud800b"])
def test_02_what_no_file_system_can_hold_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="Collect directory"):
        RemotePeer("peer", path, "/w", "backup")


# 3. Directories


def test_03_directories_may_be_none_but_not_relative() -> None:
    peer = RemotePeer("peer", None, None, "backup")
    assert (peer.collectDir, peer.workingDir) == (None, None)
    with pytest.raises(ValueError, match="absolute"):
        peer.collectDir = "collect"
    with pytest.raises(ValueError, match="absolute"):
        peer.workingDir = "tmp"


@pytest.mark.parametrize("path", ["/x/collect", b"/x/collect", Path("/x/collect")])
def test_03_directories_are_str_bytes_or_path_and_read_back_as_str(path: Any) -> None:
    assert RemotePeer("peer", path, path, "backup").collectDir == "/x/collect"
    assert LocalPeer("peer", path).collectDir == "/x/collect"
    assert RemotePeer("peer", b"/x/\xff", None, "backup").collectDir == "/x/\udcff"


def test_03_using_a_peer_without_collect_directory_is_a_value_error(target: Path) -> None:
    peer = RemotePeer("peer", None, None, "backup")
    with pytest.raises(ValueError, match="collect directory"):
        peer.stagePeer(str(target))
    with pytest.raises(ValueError, match="collect directory"):
        peer.checkCollectIndicator()
    with pytest.raises(ValueError, match="collect directory"):
        peer.writeStageIndicator()


def test_03_no_working_directory_is_needed_to_stage(peer: RemotePeer, collect: Path, target: Path) -> None:
    put(collect, a=b"a")
    peer.workingDir = None
    assert peer.stagePeer(str(target)) == 1


# 4. Commands


@pytest.mark.parametrize("attribute", ["localUser", "rcpCommand", "rshCommand", "cbackCommand"])
def test_04_commands_are_none_or_say_something_and_read_back_as_set(attribute: str) -> None:
    peer = RemotePeer(*REMOTE)
    assert getattr(peer, attribute) is None
    setattr(peer, attribute, '/usr/bin/scp "-B')
    assert getattr(peer, attribute) == '/usr/bin/scp "-B'
    for refused in ("", " \t", 7):
        with pytest.raises(ValueError, match="non-empty"):
            setattr(peer, attribute, refused)


def test_04_backends_that_are_not_there_say_so_as_os_errors(collect: Path, target: Path) -> None:
    put(collect, a=b"a")
    peer = RemotePeer("127.0.0.1", str(collect), "/tmp", "backup", keep_partial=True)
    with pytest.raises(OSError, match="not there yet"):
        peer.stagePeer(str(target))
    assert not peer.checkCollectIndicator()
    assert list(target.iterdir()) == []


def test_04_guarded_excludes_what_it_excludes(target: Path) -> None:
    for changes in (
        {"transport": "sftp"},
        {"transport": "rcp"},
        {"rcpCommand": "/usr/bin/scp"},
        {"preserve_times": True},
    ):
        peer = RemotePeer(*REMOTE, guarded=True, **changes)  # type: ignore[misc, arg-type]
        with pytest.raises(ValueError, match="guarded"):
            peer.stagePeer(str(target))


# 5. Ignore failure mode


def test_05_ignore_failure_mode_is_one_of_five() -> None:
    for mode in (None, "none", "all", "daily", "weekly"):
        assert RemotePeer(*REMOTE, ignoreFailureMode=mode).ignoreFailureMode == mode
        assert LocalPeer("peer", "/c", mode).ignoreFailureMode == mode
    for mode in ("", "ALL", "monthly", 1):
        with pytest.raises(ValueError, match="failure mode"):
            LocalPeer("peer", "/c", mode)  # type: ignore[arg-type]


# 6. Pickle and repr


def test_06_peers_pickle_and_show_no_secrets(peer: RemotePeer, collect: Path, target: Path) -> None:
    put(collect, a=b"a")
    copy = pickle.loads(pickle.dumps(peer))
    assert copy.stagePeer(str(target)) == 1
    secret = RemotePeer(*REMOTE, ssh=SSHOptions(password="hush", passphrase="quiet", pkey=b"PRIVATE"))  # type: ignore[misc]
    shown = repr(secret) + repr(secret.ssh) + str(secret)
    assert not any(word in shown for word in ("hush", "quiet", "PRIVATE"))
    assert pickle.loads(pickle.dumps(secret)).ssh.password == "hush"
    local = pickle.loads(pickle.dumps(LocalPeer("here", str(collect))))
    assert local.collectDir == str(collect)


def test_06_a_peer_in_a_with_block_pickles_without_its_connection(peer: RemotePeer, collect: Path) -> None:
    put(collect, **{"cback.collect": b""})
    with peer:
        assert peer.checkCollectIndicator()
        copy = pickle.loads(pickle.dumps(peer))
    assert copy.checkCollectIndicator()


def test_06_a_peer_with_an_open_socket_does_not_pickle() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TypeError, match="sock"):
        pickle.dumps(RemotePeer(*REMOTE, ssh=SSHOptions(sock=ours)))  # type: ignore[misc]


# 7. Target


@pytest.mark.parametrize("target", [None, "", "relative", "/does/not/exist", "/etc/hostname\0", 7])
def test_07_a_target_that_is_no_existing_absolute_directory_is_a_value_error(peer: RemotePeer, target: Any) -> None:
    with pytest.raises(ValueError, match=r"[Tt]arget"):
        peer.stagePeer(target)


def test_07_a_file_instead_of_a_target_directory_is_a_value_error(peer: RemotePeer, tmp_path: Path) -> None:
    put(tmp_path, file=b"")
    with pytest.raises(ValueError, match="directory"):
        peer.stagePeer(str(tmp_path / "file"))


def test_07_the_target_is_looked_at_before_anything_is_connected(tmp_path: Path) -> None:
    peer = RemotePeer("host.invalid", "/collect", "/tmp", "backup")
    with pytest.raises(ValueError, match="exist"):
        peer.stagePeer(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("ownership", "permissions"), [("root", None), ((1,), None), (("a", "b"), None), (None, "640")]
)
def test_07_ownership_and_permissions_are_numbers(
    peer: RemotePeer, target: Path, ownership: Any, permissions: Any
) -> None:
    with pytest.raises(ValueError, match=r"Ownership|Permissions"):
        peer.stagePeer(str(target), ownership, permissions)


# 8. to 12. What is staged


def test_08_files_are_staged_without_recursion_and_without_dotfiles(unprivileged: RemotePeer, target: Path) -> None:
    collect = Path(str(unprivileged.collectDir))
    put(collect, a=b"a", **{".hidden": b"", "cback.collect": b""})
    assert unprivileged.stagePeer(str(target)) == 2
    assert sorted(os.listdir(target)) == ["a", "cback.collect"]


def test_09_the_number_of_files_copied_is_returned_and_re_staging_counts_again(
    peer: RemotePeer, collect: Path, target: Path
) -> None:
    put(collect, a=b"1", b=b"2")
    assert peer.stagePeer(str(target)) == 2
    put(collect, a=b"new", c=b"3")
    assert peer.stagePeer(str(target)) == 3
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a": b"new", "b": b"2", "c": b"3"}
    assert peer.last_report is not None
    assert peer.last_report.count == 3


@pytest.mark.parametrize("over_and_where", [*PLACES, "scp-apart"], indirect=True)  # times are asked for over SCP alone
def test_10_permissions_and_ownership_apply_and_times_are_kept_only_if_asked(
    peer: RemotePeer, collect: Path, target: Path, over: str
) -> None:
    put(collect, a=b"a")
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
    if over == "rcp":  # times are the command's own matter
        assert peer.rcpCommand is not None
        peer.rcpCommand += " -p"
    peer.preserve_times = True
    peer.stagePeer(str(target))
    assert (target / "a").stat().st_mtime == 1_000_000_000


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_11_empty_files_count_and_links_to_files_are_followed(peer: RemotePeer, collect: Path, target: Path) -> None:
    put(collect, empty=b"", real=b"real")
    (collect / "link").symlink_to("real")
    assert peer.stagePeer(str(target)) == 3
    assert (target / "link").read_bytes() == b"real"
    assert not (target / "link").is_symlink()


def test_12_what_can_not_be_staged_raises_after_the_rest_was_staged(
    unprivileged: RemotePeer, target: Path, over: str
) -> None:
    collect = Path(str(unprivileged.collectDir))
    put(collect, good=b"good", unreadable=b"secret", other=b"other")
    (collect / "unreadable").chmod(0)
    (collect / "sub").mkdir()
    os.mkfifo(collect / "fifo")
    (collect / "dangling").symlink_to("nowhere")
    (collect / "link-to-directory").symlink_to("sub")
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(collect)
        sock.bind("socket")
        os.chdir("/")
    if os.geteuid() != 0:
        (collect / "unreadable").chmod(0)
    if over == "rcp":  # the command's status tells too little (PARITY 20)
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
    failed = {one.name for one in report.failed}
    assert failed == {"unreadable", "sub", "fifo", "dangling", "link-to-directory", "socket"}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"good": b"good", "other": b"other"}
    assert "\n" not in str(caught.value)


# 13. Failures


def test_13_empty_missing_or_unlistable_collect_directories_are_os_errors(
    unprivileged: RemotePeer, target: Path, over: str
) -> None:
    empty, unlistable, missing = {
        "sftp": ("no file", "permission", "not there"),
        "scp": ("no file", "cannot read it", "not there"),
        "rcp": ("No such file", "Permission denied", "No such file"),
    }[over]
    put(target, old=b"old")
    collect = Path(str(unprivileged.collectDir))
    with pytest.raises(NothingToStage if over != "rcp" else StageError):
        unprivileged.stagePeer(str(target))
    put(collect, **{".only-hidden": b""})
    with pytest.raises(OSError, match=empty):
        unprivileged.stagePeer(str(target))
    collect.chmod(0)
    with pytest.raises(OSError, match=unlistable):
        unprivileged.stagePeer(str(target))
    collect.chmod(0o755)
    unprivileged.collectDir = str(collect / "missing")
    with pytest.raises(OSError, match=missing):
        unprivileged.stagePeer(str(target))
    assert [path.name for path in target.iterdir()] == ["old"]


@pytest.mark.parametrize("over", ["sftp", "scp"])
def test_13_bad_host_port_user_and_key_are_os_errors_and_the_target_is_untouched(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, leaves_nothing: None, over: str
) -> None:
    put(collect, a=b"a")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    attempts: list[tuple[str, str, SSHOptions]] = [
        ("host.invalid", sshd.user, sshd.options()),
        (sshd.host, sshd.user, sshd.options(port=free_port())),
        (sshd.host, "no_such_user", sshd.options()),
        (sshd.host, sshd.user, sshd.options(identity=str(tmp_path / "other"))),
        (sshd.host, sshd.user, sshd.options(identity=str(tmp_path / "missing"))),
        (sshd.host, sshd.user, sshd.options(known_hosts=())),
    ]
    for host, user, options in attempts:
        peer = RemotePeer(host, str(collect), "/tmp", user, ssh=options, transport=over)
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
        assert str(caught.value).startswith(host)
        assert "\n" not in str(caught.value)
        assert not peer.checkCollectIndicator()
        with pytest.raises(StageError):
            peer.writeStageIndicator()
    assert list(target.iterdir()) == []


def test_13_a_command_that_can_not_reach_or_log_in_is_an_os_error_and_the_target_is_untouched(
    sshd: Sshd, collect: Path, target: Path, leaves_nothing: None
) -> None:
    put(collect, a=b"a")
    put(target, old=b"old")
    command = rcp_command(sshd.ssh_arguments())
    attempts = [
        ("host.invalid", sshd.user, command),
        (sshd.host, sshd.user, command.replace(f"Port={sshd.port}", f"Port={free_port()}")),
        (sshd.host, "no_such_user", command),
        (sshd.host, sshd.user, command.replace(str(sshd.known_hosts), "/dev/null")),
        (sshd.host, sshd.user, "/usr/bin/scp -q -o Port=1 -o Nonsense=yes"),
    ]
    for host, user, line in attempts:
        peer = RemotePeer(host, str(collect), "/tmp", user, line)
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
        assert str(caught.value).startswith(host)
        assert str(caught.value).isprintable()
        assert not peer.checkCollectIndicator()
        with pytest.raises(StageError):
            peer.writeStageIndicator()
    assert [path.name for path in target.iterdir()] == ["old"]


# 14. What lies in the target


def test_14_whatever_has_the_name_is_replaced_but_never_opened_or_followed(
    peer: RemotePeer, collect: Path, target: Path, tmp_path: Path
) -> None:
    put(tmp_path, elsewhere=b"untouched")
    put(collect, link=b"1", fifo=b"2", file=b"3", hard=b"4")
    put(target, file=b"old", unrelated=b"unrelated", hard=b"old")
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


def test_14_a_directory_under_the_name_is_an_error(peer: RemotePeer, collect: Path, target: Path) -> None:
    put(collect, taken=b"1", free=b"2")
    (target / "taken").mkdir()
    with pytest.raises(IncompleteStage, match="taken"):
        peer.stagePeer(str(target))
    assert (target / "taken").is_dir()
    assert (target / "free").read_bytes() == b"2"


# 15. Names of files


def test_15_any_name_arrives_under_that_name(peer: RemotePeer, collect: Path, target: Path, over: str) -> None:
    names = set(ODD_NAMES) if over == "sftp" else {name for name in ODD_NAMES if b"\n" not in name}
    for name in names:
        with open(os.fsencode(collect) + b"/" + name, "wb") as file:
            file.write(name)
    assert peer.stagePeer(str(target)) == len(names)
    assert set(os.listdir(os.fsencode(target))) == names
    assert peer.last_report is not None
    assert os.fsdecode(b"\xff\xfe not utf-8") in {file.name for file in peer.last_report.files}


def test_15_over_scp_a_name_with_a_newline_is_that_entrys_error(sshd: Sshd, collect: Path, target: Path) -> None:
    put(collect, **{"new\nline": b"bad", "good": b"good"})
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(), transport="scp")
    with pytest.raises(IncompleteStage, match="Use SFTP"):
        peer.stagePeer(str(target))
    assert os.listdir(target) == ["good"]


def test_15_collect_and_target_directories_may_hold_spaces_and_globs(
    sshd: Sshd, tmp_path: Path, over: str, way: Way
) -> None:
    # Of an rcp command's paths blanks alone are escaped; what it makes of other characters is its own matter.
    collect = tmp_path / ("col  lect, soon" if over == "rcp" else "col lect [a-z]*'\"$x")
    target = tmp_path / "tar get ?*"
    collect.mkdir()
    target.mkdir()
    put(collect, a=b"a", **{"cback.collect": b""})
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **way(sshd))
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(str(target)) == 2
    peer.writeStageIndicator()
    assert (collect / "cback.stage").exists()


@pytest.mark.parametrize("name", ["collect", "collect, soon"])
@pytest.mark.parametrize("command", ["scp", "scp -O", "rsync"])
def test_15_blanks_are_no_matter_whether_a_shell_on_the_peer_reads_the_paths_of_a_command(
    sshd: Sshd, tmp_path: Path, target: Path, caplog: pytest.LogCaptureFixture, command: str, name: str
) -> None:
    collect = tmp_path / name
    collect.mkdir()
    put(collect, a=b"a")
    ssh = sshd.ssh_arguments()
    line = {
        "scp": [program("scp"), "-q", *ssh],
        "scp -O": rcp_command(ssh).split(),
        "rsync": [program("rsync"), "-e", f'"{program("ssh")} {" ".join(ssh)}"'],
    }[command]
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, " ".join(line))
    caplog.set_level(logging.INFO, "peerstage.peer")
    assert not peer.checkCollectIndicator()
    assert "is not there (yet)" in caplog.text
    peer.writeStageIndicator()
    peer.writeStageIndicator("new name with spaces")
    assert peer.checkCollectIndicator("new name with spaces")
    assert peer.stagePeer(str(target)) == 3
    assert sorted(os.listdir(collect)) == sorted(os.listdir(target)) == ["a", "cback.stage", "new name with spaces"]


# 16. Exceptions: every other test of this file shows its part; this one that nothing foreign gets through


def test_16_only_value_error_and_os_error_leave_the_methods(target: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server:
        port = server.getsockname()[1]
        server.close()
    peer = RemotePeer("127.0.0.1", "/collect", "/tmp", "backup", ssh=SSHOptions(port=port, config=(), known_hosts=()))
    calls: list[Callable[[], object]] = [lambda: peer.stagePeer(str(target)), peer.writeStageIndicator]
    for call in calls:
        with pytest.raises(StageError):
            call()


# 17. and 18. checkCollectIndicator


def test_17_the_collect_indicator_is_a_regular_file_links_followed(peer: RemotePeer, collect: Path, over: str) -> None:
    with peer:
        assert not peer.checkCollectIndicator()
        put(collect, **{"cback.collect": b"", "mine": b""})
        assert peer.checkCollectIndicator()
        assert peer.checkCollectIndicator("mine")
        assert not peer.checkCollectIndicator("cback.*")
        (collect / "link").symlink_to("mine")
        assert peer.checkCollectIndicator("link")
        (collect / "directory").mkdir()
        assert not peer.checkCollectIndicator("directory")


def test_17_what_fails_is_false_and_logged_by_how_urgent_it_is(
    sshd: Sshd, collect: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peerstage")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True)
    blob = (tmp_path / "k.pub").read_text().split()[1]
    changed = f"[127.0.0.1]:{sshd.port} ssh-ed25519 {blob}\n".encode()
    real = sshd.known_hosts.read_text().split()[2]
    revoked = f"@revoked * ssh-ed25519 {real}\n".encode()
    table: list[tuple[int, str, dict[str, Any], dict[str, Any]]] = [
        (logging.INFO, "(yet).", {}, {}),
        (logging.WARNING, "[connection-refused]", {"port": free_port()}, {}),
        (logging.WARNING, "[not-found]", {}, {"collectDir": str(tmp_path / "missing")}),
        (logging.WARNING, "[not-found]", {}, {"collectDir": str(tmp_path / "missing"), "transport": "scp"}),
        (logging.WARNING, "[not-a-directory]", {}, {"collectDir": str(tmp_path / "k.pub")}),
        (logging.ERROR, "[host-key-changed]", {"known_hosts": changed}, {}),
        (logging.ERROR, "[host-key-revoked]", {"known_hosts": revoked}, {}),
        (logging.ERROR, "[host-key-unknown]", {"known_hosts": ()}, {}),
        (logging.ERROR, "[login-refused]", {"identity": str(tmp_path / "k")}, {}),
        (logging.ERROR, "[program-missing]", {}, {"rcpCommand": "/does/not/exist"}),
        (logging.INFO, "(yet).", {}, {"transport": "scp"}),
        (logging.ERROR, "[host-key-changed]", {"known_hosts": changed}, {"transport": "scp"}),
        (logging.ERROR, "[unknown-local-user]", {}, {"localUser": "another"}),
    ]
    for level, end, options, arguments in table:
        caplog.clear()
        arguments = {"collectDir": str(collect), "workingDir": "/tmp", "remoteUser": sshd.user, **arguments}
        peer = RemotePeer(sshd.host, ssh=sshd.options(**options), **arguments)
        assert not peer.checkCollectIndicator()
        assert (peer.last_error is None) == (level == logging.INFO)
        ours = [record for record in caplog.records if record.name == "peerstage.peer"]
        assert [record.levelno for record in ours] == [level], (options, arguments, caplog.text)
        assert sshd.host in ours[0].getMessage()
        assert ours[0].getMessage().endswith(end)


@pytest.mark.parametrize("indicator", ["a/b", "/etc/passwd", "..", ".", "", "a\0b", 7])
def test_18_an_indicator_is_a_plain_file_name(peer: RemotePeer, indicator: Any, collect: Path) -> None:
    local = LocalPeer("here", str(collect))
    for one in (peer, local):
        with pytest.raises(ValueError, match="Indicator"):
            one.checkCollectIndicator(indicator)
        with pytest.raises(ValueError, match="Indicator"):
            one.writeStageIndicator(indicator)


# 19. writeStageIndicator


def test_19_the_stage_indicator_is_an_empty_file_truncated_if_it_was_there(
    peer: RemotePeer, collect: Path, over: str
) -> None:
    put(collect, **{"cback.stage": b"old content"})
    peer.writeStageIndicator()
    assert (collect / "cback.stage").read_bytes() == b""
    name = "with spaces" if over == "rcp" else "with space and *"
    peer.writeStageIndicator(name)
    assert (collect / name).read_bytes() == b""
    assert stat.S_IMODE((collect / name).stat().st_mode) == 0o644


def test_19_what_lies_in_the_working_directory_is_neither_sent_nor_deleted(
    sshd: Sshd, collect: Path, public_path: Path, way: Way
) -> None:
    working = public_path / "working"
    working.mkdir()
    working.chmod(0o777)
    put(working, **{"cback.stage": b"mine", "cback.collect": b"mine"})
    peer = RemotePeer(sshd.host, str(collect), str(working), sshd.user, **way(sshd))
    peer.writeStageIndicator()
    peer.checkCollectIndicator()
    assert (collect / "cback.stage").read_bytes() == b""
    assert {path.name: path.read_bytes() for path in working.iterdir()} == {
        "cback.stage": b"mine",
        "cback.collect": b"mine",
    }


def test_19_a_remote_failure_is_an_os_error(unprivileged: RemotePeer, over: str) -> None:
    collect = Path(str(unprivileged.collectDir))
    collect.chmod(0o555)
    with pytest.raises(StageError, match=r"[Pp]ermission"):
        unprivileged.writeStageIndicator()
    (collect / "sub").mkdir() if os.geteuid() == 0 else None
    unprivileged.collectDir = str(collect / "missing")
    with pytest.raises(StageError, match="not there" if over == "sftp" else "No such file"):
        unprivileged.writeStageIndicator()


# 25. LocalPeer


def test_25_local_peers_stage_dotfiles_too(collect: Path, target: Path) -> None:
    put(collect, a=b"a", **{".hidden": b"h", "cback.collect": b""})
    peer = LocalPeer("here", str(collect))
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(str(target)) == 3
    assert sorted(os.listdir(target)) == [".hidden", "a", "cback.collect"]
    assert peer.last_report is not None
    assert peer.last_report.transport == "local"


def test_25_the_checks_come_in_the_successor_s_order(collect: Path, target: Path, tmp_path: Path) -> None:
    peer = LocalPeer("here", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="Target directory must be an absolute"):
        peer.stagePeer("relative")
    with pytest.raises(ValueError, match="Collect directory"):
        peer.stagePeer(str(tmp_path / "also-missing"))
    peer.collectDir = str(collect)
    with pytest.raises(ValueError, match="Target directory must exist"):
        peer.stagePeer(str(tmp_path / "also-missing"))


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_missing_target_is_a_wrong_argument_and_an_error_of_this_machine(
    collect: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").touch()
    peer = LocalPeer("here", str(collect)) if kind == "local" else RemotePeer("here", str(collect), "/tmp", "backup")
    for name, reason in (
        ("missing", Reason.TARGET_MISSING),
        ("file", Reason.TARGET_NOT_A_DIRECTORY),
        ("file/below", Reason.TARGET_NOT_A_DIRECTORY),
    ):
        with pytest.raises(ValueError, match="Target directory must exist") as caught:
            peer.stagePeer(str(tmp_path / name))
        assert isinstance(caught.value, LandingError)
        assert (caught.value.reason, caught.value.peer) == (reason, "here")


@pytest.mark.parametrize("obstacle", ["directory", "link", "fifo"])
def test_25_a_directory_or_link_is_a_stage_error_and_a_value_error_and_the_rest_stays(
    collect: Path, target: Path, obstacle: str
) -> None:
    put(collect, a=b"a", b=b"b")
    {
        "directory": lambda: (collect / "x").mkdir(),
        "link": lambda: (collect / "x").symlink_to("a"),
        "fifo": lambda: os.mkfifo(collect / "x"),
    }[obstacle]()
    with pytest.raises(ValueError, match="x") as caught:
        LocalPeer("here", str(collect)).stagePeer(str(target))
    assert isinstance(caught.value, StageError)
    assert sorted(os.listdir(target)) == ["a", "b"]
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ValueError)


def test_25_an_empty_local_directory_is_an_os_error(collect: Path, target: Path) -> None:
    with pytest.raises(OSError, match="no file"):
        LocalPeer("here", str(collect)).stagePeer(str(target))


def test_25_without_its_collect_directory_check_is_false_and_the_rest_value_errors(
    tmp_path: Path, target: Path
) -> None:
    peer = LocalPeer("here", str(tmp_path / "missing"))
    assert not peer.checkCollectIndicator()
    with pytest.raises(ValueError, match="Collect directory"):
        peer.stagePeer(str(target))
    with pytest.raises(ValueError, match="Collect directory"):
        peer.writeStageIndicator()


def test_25_the_local_stage_indicator_takes_ownership_and_permissions(collect: Path) -> None:
    owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    LocalPeer("here", str(collect)).writeStageIndicator(None, owner, 0o604)
    found = (collect / "cback.stage").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o604)


def test_25_a_link_planted_as_the_local_stage_indicator_is_not_followed(collect: Path, tmp_path: Path) -> None:
    put(tmp_path, precious=b"precious")
    (collect / "cback.stage").symlink_to(tmp_path / "precious")
    with pytest.raises(StageError):
        LocalPeer("here", str(collect)).writeStageIndicator()
    assert (tmp_path / "precious").read_bytes() == b"precious"


# 26. As the stage action calls it


def test_26_the_stage_action_s_loop_works_over_good_and_bad_peers(
    peer: RemotePeer, sshd: Sshd, collect: Path, tmp_path: Path
) -> None:
    put(collect, a=b"a", **{"cback.collect": b""})
    local = tmp_path / "local"
    local.mkdir()
    put(local, b=b"b", **{"cback.collect": b""})
    not_ready = tmp_path / "not-ready"
    not_ready.mkdir()
    peers: list[BackupPeer] = [
        peer,
        LocalPeer("local", str(local)),
        LocalPeer("not-ready", str(not_ready)),
        RemotePeer("down", str(collect), "/tmp", sshd.user, ssh=sshd.options(port=free_port())),
    ]
    staged = {}
    for one in peers:
        target = tmp_path / "staging" / "2026" / "11" / "23" / one.name
        target.mkdir(parents=True)
        try:
            if not one.checkCollectIndicator():
                continue
            staged[one.name] = one.stagePeer(targetDir=str(target), ownership=(os.getuid(), os.getgid()))
            one.writeStageIndicator()
        except (ValueError, OSError) as exc:
            staged[one.name] = exc  # type: ignore[assignment]
    assert staged == {peer.name: 2, "local": 2}
    assert (collect / "cback.stage").exists()
    assert (local / "cback.stage").exists()


# The surface


def test_the_public_names_are_these() -> None:
    assert sorted(peerstage.__all__) == [
        "BackupPeer",
        "Limits",
        "LocalPeer",
        "Progress",
        "Reason",
        "RemotePeer",
        "Retry",
        "SSHOptions",
        "StageError",
        "StageReport",
        "sweep",
    ]
    for name in peerstage.__all__:
        assert getattr(peerstage, name) is not None
    assert set(peerstage.__all__) <= set(dir(peerstage))


@pytest.mark.usefixtures("fresh_interpreter")
def test_importing_the_package_loads_neither_paramiko_nor_anything_optional() -> None:
    code = "import sys, peerstage; print(set(sys.modules) & {'paramiko', 'scp', 'typer', 'rich', 'asyncssh'} or '')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == ""
