"""A machine that is short of something: the error says so, and blames neither the peer nor its configuration."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, RemotePeer, SSHOptions, StageError
from peerstage.errors import ConfigurationError, ConnectError, HostKeyError
from peerstage.isolation.users import copying_user
from peerstage.session.config import resolve_destination
from peerstage.session.dial import dial
from peerstage.session.known_hosts import KnownHosts
from peerstage.session.tokens import local_user
from peerstage.session.watchdog import Watchdog
from peerstage.staging import target_directory
from peerstage.system_errors import start_process
from peerstage.util import getUidGid
from support.children import is_gone
from support.system_faults import Call, Faults


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing more can be opened by this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refused(work: Callable[[], object], words: str) -> StageError:
    """Do *work*, which must fail with *words* and advice, as the fault of this machine alone."""
    with pytest.raises(StageError, match=words) as caught:
        work()
    assert not isinstance(caught.value, (ConfigurationError, ConnectError, HostKeyError)), caught.value
    assert str(caught.value).isprintable()
    return caught.value


def when(name: str, place: str) -> Callable[[Call], bool]:
    return lambda call: call.name == name and call.place.startswith(place)


# Look-ups that say "not found" of every error.


@pytest.fixture
def runs_as_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process seems to be run by a user who stands in a file: of root, nss-systemd(8) knows without one."""
    number = pwd.getpwnam("backup").pw_uid
    monkeypatch.setattr(os, "getuid", lambda: number)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda: getUidGid("backup", "backup"),
        lambda: local_user(),
        lambda: resolve_destination("db1", None, SSHOptions(config=(), known_hosts=())),
    ],
    ids=["getUidGid", "%u", "whoever runs this process"],
)
@pytest.mark.usefixtures("runs_as_backup")
def test_a_user_is_not_unknown_because_no_file_can_be_opened(look_up: Callable[[], object]) -> None:
    with contextlib.suppress(StageError):
        look_up()
    with no_descriptors():
        assert refused(look_up, r"Too many open files.*ulimit -n").errno == errno.EMFILE


@pytest.mark.usefixtures("root")
def test_a_local_user_is_not_unknown_because_no_file_can_be_opened() -> None:
    with no_descriptors():
        assert refused(lambda: copying_user("backup"), r"Too many open files.*ulimit -n").errno == errno.EMFILE


@pytest.mark.usefixtures("runs_as_backup")
def test_the_home_directory_of_the_password_database_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    options = SSHOptions(config=(), known_hosts="~/.ssh/known_hosts")
    assert resolve_destination("db1", "backup", options).known_hosts[0] != "~/.ssh/known_hosts"
    with no_descriptors():
        refused(lambda: resolve_destination("db1", "backup", options), "Too many open files")


def test_a_name_is_not_misspelt_because_no_file_can_be_opened(watchdog: Watchdog) -> None:
    with no_descriptors():
        refused(lambda: call("db1.example.com", 22, watchdog), r"Too many open files.*ulimit -n")


# Files that decide who is reached and trusted.


def test_an_include_is_not_passed_over_because_its_directory_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "real").write_text("Host db1\n HostName real\n")
    (tmp_path / "config").write_text(f"Include {tmp_path}/conf.d/*\n")
    options = SSHOptions(config=str(tmp_path / "config"))
    with Faults().failing(when("scandir", "session/files.py"), errno.EMFILE):
        refused(lambda: resolve_destination("db1", "backup", options), "conf.d: It cannot be listed")
    assert resolve_destination("db1", "backup", options).host == "real"


@pytest.mark.parametrize(("name", "number"), [("open", errno.EMFILE), ("open", errno.EIO), ("fstat", errno.ENOMEM)])
def test_known_hosts_is_not_empty_because_it_cannot_be_read_now(tmp_path: Path, name: str, number: int) -> None:
    """Its @revoked lines would not count."""
    (tmp_path / "known").write_text("")
    with Faults().failing(when(name, "session/known_hosts.py"), number):
        refused(lambda: KnownHosts.read([tmp_path / "known"]), "It cannot be read")
    with Faults().failing(when(name, "session/known_hosts.py"), errno.EACCES):
        assert len(KnownHosts.read([tmp_path / "known"])) == 0, "what is the file's own matter is warned about"


def test_a_target_is_no_wrong_argument_because_it_cannot_be_looked_at(tmp_path: Path) -> None:
    with Faults().failing(when("stat", "staging.py"), errno.EIO):
        refused(lambda: target_directory(tmp_path), "Input/output error")


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
    return dial(host, port, **values)


def with_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[socket.AddressFamily, Any]) -> None:
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)


@pytest.mark.parametrize(
    ("name", "number"),
    [("__init__", errno.EAFNOSUPPORT), ("__init__", errno.EACCES), ("connect_ex", errno.EADDRNOTAVAIL)],
)
def test_an_address_that_this_machine_has_no_use_for_leads_to_the_next(
    watchdog: Watchdog, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    here = listener.getsockname()
    with_addresses(monkeypatch, (socket.AF_INET, ("127.0.0.1", 1)), (socket.AF_INET, here))
    with Faults().failing(when(name, "session/dial.py"), number):
        sock, _ = call("db1", here[1], watchdog)
    with sock:
        assert sock.getpeername() == here
    with_addresses(monkeypatch, (socket.AF_INET, here))
    with (
        Faults().failing(when(name, "session/dial.py"), number),
        pytest.raises(ConnectError, match=os.strerror(number)),
    ):
        call("db1", here[1], watchdog)


def test_no_other_address_is_tried_when_there_are_no_descriptors(
    watchdog: Watchdog, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = listener.getsockname()
    with_addresses(monkeypatch, (socket.AF_INET, here), (socket.AF_INET, here))
    with Faults().failing(when("__init__", "session/dial.py"), errno.EMFILE):
        refused(lambda: call("db1", here[1], watchdog), r"No connection to 127\.0\.0\.1 can be made.*ulimit -n")


def test_a_peer_that_resets_the_connection_at_once_is_no_error_of_the_system(
    watchdog: Watchdog, listener: socket.socket
) -> None:
    """getpeername(2) knows nobody then."""
    seen = []
    here = listener.getsockname()
    with Faults().failing(when("getpeername", ""), errno.ENOTCONN):
        sock, _ = call("127.0.0.1", here[1], watchdog, note=lambda step, words: seen.append((step, words)))
    sock.close()
    assert seen[-1] == ("connection", f"127.0.0.1 port {here[1]}")


@pytest.mark.parametrize("place", ["session/watchdog.py", "session/dial.py"])
def test_a_thread_that_cannot_be_started_is_said_to_be_that(
    listener: socket.socket, tmp_path: Path, place: str, leaves_nothing: None
) -> None:
    options = SSHOptions(port=listener.getsockname()[1], config=(), known_hosts=(), agent=False)
    with (
        RemotePeer("127.0.0.1", "/collect", None, "backup", ssh=options) as peer,
        Faults().failing(when("start", place), 0),
    ):
        error = refused(lambda: peer.stagePeer(str(tmp_path)), r"can't start new thread.*ulimit -u")
    assert error.peer == "127.0.0.1"


# Commands.


def test_a_command_whose_status_somebody_else_has_taken_has_not_succeeded(tmp_path: Path) -> None:
    """As where the program that stages ignores SIGCHLD: the kernel reaps its children, and keeps no status."""
    peer = RemotePeer("127.0.0.1", "/collect", str(tmp_path), "backup", rcpCommand="/bin/true")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        refused(peer.writeStageIndicator, "SIGCHLD")
    finally:
        signal.signal(signal.SIGCHLD, before)
    peer.writeStageIndicator()


def test_a_command_that_cannot_be_started_now_is_not_to_be_installed(tmp_path: Path) -> None:
    peer = RemotePeer("127.0.0.1", "/collect", str(tmp_path), "backup", rcpCommand="/bin/true")
    with Faults().failing(when("_execute_child", "system_errors"), errno.EAGAIN):
        assert "Install" not in str(refused(peer.writeStageIndicator, r"temporarily unavailable.*ulimit -u"))


# Processes.


def test_an_interrupt_while_a_process_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        """Ctrl-C comes when the process runs, and its starter does not know it yet."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_process(["sleep", "1000"])
    assert is_gone(started[0])
