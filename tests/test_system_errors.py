"""A machine without resources: the error says so, and does not blame the peer or its configuration."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, RemotePeer, SSHOptions, StageError
from peerstage.errors import ConfigurationError, ConnectError, HostKeyError
from peerstage.isolation.users import find_local_user
from peerstage.paths import validate_target_directory
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.config.tokens import local_user_name
from peerstage.ssh.connect.tcp import connect_tcp
from peerstage.ssh.hostkeys.known_hosts import KnownHosts
from peerstage.util import getUidGid
from peerstage.watchdog import Watchdog
from support.system_faults import Call, Faults


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process cannot open any more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refused(work: Callable[[], object], words: str) -> StageError:
    """Do *work*, which must fail with *words* and advice about this machine."""
    with pytest.raises(StageError, match=words) as caught:
        work()
    assert not isinstance(caught.value, (ConfigurationError, ConnectError, HostKeyError)), caught.value
    assert str(caught.value).isprintable()
    return caught.value


def is_call(name: str, location: str) -> Callable[[Call], bool]:
    return lambda call: call.name == name and call.location.startswith(location)


# Look-ups that say "not found" of every error.


@pytest.fixture
def runs_as_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process seem to run as a user from a file; nss-systemd(8) knows root without a file."""
    number = pwd.getpwnam("backup").pw_uid
    monkeypatch.setattr(os, "getuid", lambda: number)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda: getUidGid("backup", "backup"),
        local_user_name,
        lambda: resolve_destination("db1", None, SSHOptions(config=(), known_hosts=())),
    ],
    ids=["getUidGid", "%u", "the user of this process"],
)
@pytest.mark.usefixtures("runs_as_backup")
def test_a_user_is_not_reported_as_unknown_if_no_file_can_be_opened(look_up: Callable[[], object]) -> None:
    with contextlib.suppress(StageError):
        look_up()
    with no_descriptors():
        assert refused(look_up, r"Too many open files.*ulimit -n").errno == errno.EMFILE


@pytest.mark.usefixtures("root")
def test_a_local_user_is_not_reported_as_unknown_if_no_file_can_be_opened() -> None:
    with no_descriptors():
        assert refused(lambda: find_local_user("backup"), r"Too many open files.*ulimit -n").errno == errno.EMFILE


@pytest.mark.usefixtures("runs_as_backup")
def test_the_home_directory_of_the_password_database_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    options = SSHOptions(config=(), known_hosts="~/.ssh/known_hosts")
    assert resolve_destination("db1", "backup", options).known_hosts[0] != "~/.ssh/known_hosts"
    with no_descriptors():
        refused(lambda: resolve_destination("db1", "backup", options), "Too many open files")


def test_a_host_name_is_not_reported_as_misspelt_if_no_file_can_be_opened(watchdog: Watchdog) -> None:
    with no_descriptors():
        refused(lambda: call("db1.example.com", 22, watchdog), r"Too many open files.*ulimit -n")


# Files that decide who is reached and trusted.


def test_an_include_is_not_skipped_if_its_directory_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "real").write_text("Host db1\n HostName real\n")
    (tmp_path / "config").write_text(f"Include {tmp_path}/conf.d/*\n")
    options = SSHOptions(config=str(tmp_path / "config"))
    with Faults().failing(is_call("scandir", "bounded_files.py"), errno.EMFILE):
        refused(lambda: resolve_destination("db1", "backup", options), "conf.d: It cannot be listed")
    assert resolve_destination("db1", "backup", options).host == "real"


@pytest.mark.parametrize(("name", "number"), [("open", errno.EMFILE), ("open", errno.EIO), ("fstat", errno.ENOMEM)])
def test_known_hosts_does_not_count_as_empty_if_it_cannot_be_read(tmp_path: Path, name: str, number: int) -> None:
    """Else its @revoked lines would be ignored."""
    (tmp_path / "known").write_text("")
    with Faults().failing(is_call(name, "bounded_files.py"), number):
        refused(lambda: KnownHosts.read([tmp_path / "known"]), "It cannot be read")
    with Faults().failing(is_call(name, "ssh/hostkeys/known_hosts.py"), errno.EACCES):
        known = KnownHosts.read([tmp_path / "known"])
    assert known.is_new_host("db1", 22), "a file that its owner made unreadable is only warned about"


def test_a_target_is_not_a_wrong_argument_if_it_cannot_be_examined(tmp_path: Path) -> None:
    with Faults().failing(is_call("stat", "paths.py"), errno.EIO):
        refused(lambda: validate_target_directory(tmp_path), "Input/output error")


# Connections.


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(Limits())
    yield watchdog
    watchdog.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def call(host: str, port: int, watchdog: Watchdog, **changes: Any) -> tuple[socket.socket, float]:
    values: dict[str, Any] = {"family": socket.AF_UNSPEC, "timeout": 5.0, "watchdog": watchdog, **changes}
    return connect_tcp(host, port, **values)


def with_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[socket.AddressFamily, Any]) -> None:
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)


@pytest.mark.parametrize(
    ("name", "number"),
    [("__init__", errno.EAFNOSUPPORT), ("__init__", errno.EACCES), ("connect_ex", errno.EADDRNOTAVAIL)],
)
def test_an_unsupported_address_family_leads_to_the_next_address(
    watchdog: Watchdog, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    here = listener.getsockname()
    with_addresses(monkeypatch, (socket.AF_INET, ("127.0.0.1", 1)), (socket.AF_INET, here))
    with Faults().failing(is_call(name, "ssh/connect/tcp.py"), number):
        sock, _ = call("db1", here[1], watchdog)
    with sock:
        assert sock.getpeername() == here
    with_addresses(monkeypatch, (socket.AF_INET, here))
    with (
        Faults().failing(is_call(name, "ssh/connect/tcp.py"), number),
        pytest.raises(ConnectError, match=os.strerror(number)),
    ):
        call("db1", here[1], watchdog)


def test_no_other_address_is_tried_without_descriptors(
    watchdog: Watchdog, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = listener.getsockname()
    with_addresses(monkeypatch, (socket.AF_INET, here), (socket.AF_INET, here))
    with Faults().failing(is_call("__init__", "ssh/connect/tcp.py"), errno.EMFILE):
        refused(lambda: call("db1", here[1], watchdog), r"No connection to 127\.0\.0\.1 can be made.*ulimit -n")


def test_a_connection_reset_at_once_is_not_an_error_of_this_machine(
    watchdog: Watchdog, listener: socket.socket
) -> None:
    """getpeername(2) fails then."""
    seen = []
    here = listener.getsockname()
    with Faults().failing(is_call("getpeername", ""), errno.ENOTCONN):
        sock, _ = call("127.0.0.1", here[1], watchdog, on_step=lambda step, words: seen.append((step, words)))
    sock.close()
    assert seen[-1] == ("connection", f"127.0.0.1 port {here[1]}")


@pytest.mark.parametrize("location", ["watchdog.py", "ssh/connect/tcp.py"])
def test_a_thread_that_cannot_be_started_is_reported(
    listener: socket.socket, tmp_path: Path, location: str, leaves_nothing: None
) -> None:
    options = SSHOptions(port=listener.getsockname()[1], config=(), known_hosts=(), agent=False)
    with (
        RemotePeer("127.0.0.1", "/collect", None, "backup", ssh=options) as peer,
        Faults().failing(is_call("start", location), 0),
    ):
        error = refused(lambda: peer.stagePeer(str(tmp_path)), r"refuses another thread.*ulimit -u")
    assert error.peer == "127.0.0.1"


# Commands.


def test_a_command_whose_status_is_lost_has_failed(tmp_path: Path) -> None:
    """If the program ignores SIGCHLD, the kernel reaps its children and discards their status."""
    peer = RemotePeer("127.0.0.1", "/collect", str(tmp_path), "backup", rcpCommand="/bin/true")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        refused(peer.writeStageIndicator, "SIGCHLD")
    finally:
        signal.signal(signal.SIGCHLD, before)
    peer.writeStageIndicator()


def test_a_command_that_cannot_be_started_for_lack_of_resources_is_not_reported_as_missing(tmp_path: Path) -> None:
    peer = RemotePeer("127.0.0.1", "/collect", str(tmp_path), "backup", rcpCommand="/bin/true")
    with Faults().failing(is_call("_execute_child", "processes"), errno.EAGAIN):
        assert "Install" not in str(refused(peer.writeStageIndicator, r"temporarily unavailable.*ulimit -u"))
