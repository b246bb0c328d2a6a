"""Construction of peers: arguments, properties and pickling, as callers of the original rely on them."""

from __future__ import annotations

import inspect
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest

from peerstage import BackupPeer, Limits, LocalPeer, RemotePeer, Retry, SSHOptions, StageOptions

REMOTE = ("peer", "/collect", "/tmp", "backup")


def test_every_call_that_cedar_backup_accepts_is_accepted() -> None:
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


def test_names_and_order_of_the_arguments_are_those_of_the_original() -> None:
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
    assert list(inspect.signature(LocalPeer).parameters)[:3] == ["name", "collectDir", "ignoreFailureMode"]


@pytest.mark.parametrize("kind", [RemotePeer, LocalPeer, BackupPeer])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("stagePeer", ["targetDir", "ownership", "permissions"]),
        ("checkCollectIndicator", ["collectIndicator"]),
        ("writeStageIndicator", ["stageIndicator", "ownership", "permissions"]),
    ],
)
def test_names_and_order_of_the_methods_arguments_are_those_of_the_original(
    kind: type, method: str, arguments: list[str]
) -> None:
    assert list(inspect.signature(getattr(kind, method)).parameters)[1:] == arguments


def test_arguments_are_checked_in_the_order_of_the_original() -> None:
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
    messages = ["Peer name", "Collect", "Working", "Remote user", "Local user", "RCP", "RSH", "cback", "Ignore failure"]
    right = {"name": "peer", "collectDir": "/c", "workingDir": "/w", "remoteUser": "backup"}
    for name, message in zip(list(wrong), messages, strict=True):
        with pytest.raises(ValueError, match=message):
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
        ("ssh", {"port": 22}),
        ("stage", {"durable": False}),
        ("retry", 3),
        ("limits", Retry()),
    ],
)
def test_every_assignment_is_checked_and_an_invalid_one_changes_nothing(attribute: str, value: Any) -> None:
    peer = RemotePeer(*REMOTE)
    before = getattr(peer, attribute)
    with pytest.raises(ValueError, match=r"must|cannot"):
        setattr(peer, attribute, value)
    assert getattr(peer, attribute) == before


@pytest.mark.parametrize("peer", [RemotePeer(*REMOTE), LocalPeer("peer", "/c")], ids=lambda peer: type(peer).__name__)  # type: ignore[misc]
def test_options_and_limits_may_be_assigned_and_none_means_the_defaults(peer: RemotePeer | LocalPeer) -> None:
    assert (peer.stage, peer.limits) == (StageOptions(), Limits())
    peer.stage, peer.limits = StageOptions(durable=False), Limits(entries=7)
    assert (peer.stage, peer.limits) == (StageOptions(durable=False), Limits(entries=7))
    assert pickle.loads(pickle.dumps(peer)).stage == StageOptions(durable=False)
    peer.stage = peer.limits = None  # type: ignore[assignment]
    assert (peer.stage, peer.limits) == (StageOptions(), Limits())


@pytest.mark.parametrize(
    "name", [None, "", "  ", "-oProxyCommand=x", "a b", "a;b", "$(id)", "a`b`", "a\nb", "a|b", "a\0", "a\ud800"]
)
def test_a_name_that_a_shell_or_an_option_parser_would_misread_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="Peer name"):
        RemotePeer(name, "/c", "/w", "backup")
    with pytest.raises(ValueError, match="Peer name"):
        LocalPeer(name, "/c")


@pytest.mark.parametrize(
    "name", ["db1", "db1.example.com", "192.0.2.7", "::1", "[2001:db8::7]", "fe80::1%eth0", "my_host"]
)
def test_addresses_host_names_and_aliases_are_accepted(name: str) -> None:
    assert RemotePeer(name, "/c", "/w", "backup").name == name


@pytest.mark.parametrize("user", [None, "", "-l", "a b", "a;b", "a\nb"])
def test_the_remote_user_is_required_and_must_be_a_plain_name(user: Any) -> None:
    with pytest.raises(ValueError, match="Remote user"):
        RemotePeer("peer", "/c", "/w", user)


@pytest.mark.parametrize("path", ["/a\0b", "/a\ud800b"])
def test_a_path_that_no_file_system_can_hold_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="Collect directory"):
        RemotePeer("peer", path, "/w", "backup")


def test_directories_may_be_none_but_not_relative() -> None:
    peer = RemotePeer("peer", None, None, "backup")
    assert (peer.collectDir, peer.workingDir) == (None, None)
    with pytest.raises(ValueError, match="absolute"):
        peer.collectDir = "collect"
    with pytest.raises(ValueError, match="absolute"):
        peer.workingDir = "tmp"


@pytest.mark.parametrize("path", ["/x/collect", b"/x/collect", Path("/x/collect")])
def test_directories_are_str_bytes_or_path_and_are_returned_as_str(path: Any) -> None:
    assert RemotePeer("peer", path, path, "backup").collectDir == "/x/collect"
    assert LocalPeer("peer", path).collectDir == "/x/collect"
    assert RemotePeer("peer", b"/x/\xff", None, "backup").collectDir == "/x/\udcff"


def test_using_a_peer_without_a_collect_directory_is_a_value_error(target: Path) -> None:
    peer = RemotePeer("peer", None, None, "backup")
    with pytest.raises(ValueError, match="collect directory"):
        peer.stagePeer(str(target))
    with pytest.raises(ValueError, match="collect directory"):
        peer.checkCollectIndicator()
    with pytest.raises(ValueError, match="collect directory"):
        peer.writeStageIndicator()


@pytest.mark.parametrize("attribute", ["localUser", "rcpCommand", "rshCommand", "cbackCommand"])
def test_commands_are_none_or_not_blank_and_are_returned_as_set(attribute: str) -> None:
    peer = RemotePeer(*REMOTE)
    assert getattr(peer, attribute) is None
    setattr(peer, attribute, '/usr/bin/scp "-B')
    assert getattr(peer, attribute) == '/usr/bin/scp "-B'
    for refused in ("", " \t", 7, "a\0b", "a\ud800b"):
        with pytest.raises(ValueError, match="must be a non-blank string without NUL"):
            setattr(peer, attribute, refused)


def test_guarded_contradicts_other_transports_and_preserve_times(target: Path) -> None:
    for changes in (
        {"transport": "sftp"},
        {"transport": "rcp"},
        {"rcpCommand": "/usr/bin/scp"},
        {"stage": StageOptions(preserve_times=True)},
    ):
        peer = RemotePeer(*REMOTE, guarded=True, **changes)  # type: ignore[misc, arg-type]
        with pytest.raises(ValueError, match="guarded"):
            peer.stagePeer(str(target))


def test_ignore_failure_mode_is_one_of_five() -> None:
    for mode in (None, "none", "all", "daily", "weekly"):
        assert RemotePeer(*REMOTE, ignoreFailureMode=mode).ignoreFailureMode == mode
        assert LocalPeer("peer", "/c", mode).ignoreFailureMode == mode
    for mode in ("", "ALL", "monthly", 1):
        with pytest.raises(ValueError, match="failure mode"):
            LocalPeer("peer", "/c", mode)  # type: ignore[arg-type]


def test_a_peer_with_an_open_socket_does_not_pickle() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TypeError, match="sock"):
        pickle.dumps(RemotePeer(*REMOTE, ssh=SSHOptions(sock=ours)))  # type: ignore[misc]


def test_the_target_is_checked_before_connecting(tmp_path: Path) -> None:
    peer = RemotePeer("host.invalid", "/collect", "/tmp", "backup")
    with pytest.raises(ValueError, match="exist"):
        peer.stagePeer(str(tmp_path / "missing"))


def test_no_secret_is_in_the_repr_of_a_peer_and_pickling_keeps_it() -> None:
    peer = RemotePeer(*REMOTE, ssh=SSHOptions(password="hush", passphrase="quiet", pkey=b"PRIVATE"))  # type: ignore[misc]
    text = repr(peer) + repr(peer.ssh) + str(peer)
    assert not any(secret in text for secret in ("hush", "quiet", "PRIVATE"))
    assert pickle.loads(pickle.dumps(peer)).ssh.password == "hush"
