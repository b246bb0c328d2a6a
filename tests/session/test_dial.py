"""From a name to a connection: several attempts, an address to come from, one family of addresses, IPv6."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, RemotePeer, Retry
from peerstage.errors import Cancelled, ConnectError, UnknownHostKey
from peerstage.reasons import Reason
from peerstage.session.dial import dial
from peerstage.session.watchdog import Watchdog
from support.sshd import Sshd, free_port
from support.waiting import wait_until


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(Limits())
    yield watchdog
    watchdog.close()


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir(mode=0o700)
    return own_home / ".ssh" / "config"


def peer_of(server: Sshd, collect: Path, name: str = "db1", **options: Any) -> RemotePeer:
    """A peer that only the configuration knows how to reach."""
    options = {"port": None, "config": None, **options}
    return RemotePeer(name, str(collect), "/tmp", server.user, ssh=server.options(**options), retry=Retry(tries=1))


def lines_for(server: Sshd, *more: str, name: str = "db1") -> str:
    settings = (f"HostName {server.host}", f"Port {server.port}", f"User {server.user}", *more)
    return f"Host {name}\n " + "\n ".join(settings) + "\n"


def call(port: int, watchdog: Watchdog, **changes: Any) -> tuple[socket.socket, float]:
    values: dict[str, Any] = {"family": socket.AF_UNSPEC, "timeout": 2.0, "watchdog": watchdog, **changes}
    return dial("127.0.0.1", port, **values)


@pytest.fixture
def late() -> Iterator[tuple[socket.socket, int]]:
    """A socket that has its port, and does not listen yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock, sock.getsockname()[1]


@pytest.mark.usefixtures("patience")
def test_a_server_that_comes_up_late_is_reached_if_there_are_attempts_enough(
    late: tuple[socket.socket, int], watchdog: Watchdog, leaves_nothing: None
) -> None:
    sock, port = late
    with pytest.raises(ConnectError, match=r"Connection refused\."):
        call(port, watchdog)
    timer = threading.Timer(1.5, sock.listen)
    timer.start()
    connected, left = call(port, watchdog, attempts=10)
    connected.close()
    timer.join()
    assert 1.0 < left <= 2.0, "each attempt has the whole time"


def test_attempts_are_a_second_apart_and_counted(
    sshd: Sshd, collect: Path, config: Path, caplog: pytest.LogCaptureFixture, target: Path
) -> None:
    caplog.set_level(logging.INFO, "peerstage.session")
    config.write_text(f"Host db1\n HostName 127.0.0.1\n Port {free_port()}\n ConnectionAttempts 3\n")
    started = time.monotonic()
    with pytest.raises(ConnectError, match=r"Connection refused \(3 attempts\)") as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert caught.value.reason is Reason.CONNECTION_REFUSED
    assert 2.0 <= time.monotonic() - started < 10
    assert caplog.text.count("Connection refused; trying again") == 2


@pytest.mark.usefixtures("patience")
def test_each_attempt_has_the_time_to_connect(watchdog: Watchdog) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(1)]
        started = time.monotonic()
        with pytest.raises(ConnectError, match=r"no answer in time \(2 attempts\)") as caught:
            call(port, watchdog, timeout=0.5, attempts=2)
        assert caught.value.reason is Reason.CONNECT_TIMEOUT
        assert 1.9 <= time.monotonic() - started < 8
        for sock in waiting:
            sock.close()


def test_attempts_end_when_the_run_is_cancelled(late: tuple[socket.socket, int], watchdog: Watchdog) -> None:
    threading.Timer(0.5, watchdog.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        call(late[1], watchdog, attempts=1000)
    assert time.monotonic() - started < 3


class HangingResolver:
    """A getaddrinfo(3) that answers only once it is told to.

    Attributes:
        asked: Names that it was asked for, each time that it was.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, *others: Any) -> Any:
        self.asked.append(host)
        assert self.answers.wait(60)
        return self._resolve("127.0.0.1", *others)

    def threads(self) -> int:
        return sum(thread.name == "peerstage-resolver" for thread in threading.enumerate())


@pytest.mark.usefixtures("patience")
def test_a_resolver_that_hangs_holds_one_thread_for_each_name_however_often_it_is_asked(
    leaves_nothing: None, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = HangingResolver(monkeypatch)
    try:
        for name in ("db1", "db2") * 5:
            with pytest.raises(ConnectError, match=f"The name {name} was not resolved in time"):
                dial(name, 22, family=0, timeout=0.06, watchdog=watchdog)
        assert sorted(resolver.asked) == ["db1", "db2"]
        assert resolver.threads() == 2
    finally:
        resolver.answers.set()
    wait_until(lambda: not resolver.threads())


def test_an_answer_that_comes_late_serves_the_next_attempt(
    leaves_nothing: None, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = HangingResolver(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectError, match="not resolved in time") as caught:
            dial("db1", port, family=0, timeout=0.06, watchdog=watchdog)
        assert caught.value.reason is Reason.RESOLVER_TIMEOUT
        resolver.answers.set()
        for times_asked in (1, 2):
            dial("db1", port, family=0, timeout=10, watchdog=watchdog)[0].close()
            assert times_asked <= len(resolver.asked) <= 2
            wait_until(lambda: not resolver.threads())


def test_a_name_that_is_unknown_is_asked_for_once(watchdog: Watchdog) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectError, match=r"can ?not be resolved") as caught:
        dial("no-such-host.invalid", 22, family=0, timeout=20, watchdog=watchdog, attempts=1000)
    assert caught.value.reason in (Reason.NAME_NOT_RESOLVED, Reason.RESOLVER_TIMEOUT), "the latter without a DNS server"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("address", ["127.0.0.7", "localhost"])
def test_the_connection_comes_from_the_address_that_is_configured(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, address: str
) -> None:
    server = own_sshd()
    config.write_text(lines_for(server, f"BindAddress {address}"))
    (collect / "a").touch()
    assert peer_of(server, collect).stagePeer(str(target)) == 1
    seen = "127.0.0.1" if address == "localhost" else address
    assert f"Accepted publickey for {server.user} from {seen} port" in server.log


def test_a_hop_is_reached_from_the_address_that_is_its_own(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path
) -> None:
    server, gate = own_sshd(), own_sshd()
    (gate.home / "authorized_keys").write_bytes((server.home / "id.pub").read_bytes())
    config.write_text(
        lines_for(server, "ProxyJump gate", "BindAddress 192.0.2.1")
        + lines_for(gate, "BindAddress 127.0.0.8", "ConnectionAttempts 2", name="gate")
    )
    (collect / "a").touch()
    known = server.known_hosts.read_bytes() + gate.known_hosts.read_bytes()
    assert peer_of(server, collect, known_hosts=known).stagePeer(str(target)) == 1
    assert "from 127.0.0.8 port" in gate.log
    assert "from 127.0.0.1 port" in server.log


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("192.0.2.1", "BindAddress 192.0.2.1: Cannot assign requested address"),
        ("::1", "BindAddress ::1: The name ::1 can not be resolved to an IPv4 address"),
        ("no-such-host.invalid", "BindAddress no-such-host.invalid: The name"),
    ],
)
def test_an_address_that_is_not_to_be_had_is_named(
    leaves_nothing: None, sshd: Sshd, collect: Path, target: Path, config: Path, address: str, words: str
) -> None:
    config.write_text(lines_for(sshd, f"BindAddress {address}"))
    with pytest.raises(ConnectError, match=words) as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert caught.value.reason is Reason.BIND_FAILED


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EHOSTUNREACH, Reason.HOST_UNREACHABLE),
        (errno.ENETUNREACH, Reason.HOST_UNREACHABLE),
        (errno.ETIMEDOUT, Reason.CONNECT_TIMEOUT),
        (errno.ECONNREFUSED, Reason.CONNECTION_REFUSED),
        (errno.EPERM, Reason.CONNECT_FAILED),
    ],
)
def test_what_the_system_says_of_a_connection_has_its_reason(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch, code: int, reason: Reason
) -> None:
    monkeypatch.setattr(socket.socket, "connect_ex", lambda sock, address: code)
    with pytest.raises(ConnectError) as caught:
        call(free_port(), watchdog)
    assert (caught.value.reason, caught.value.errno) == (reason, code)


# IPv6, on a real server.


@pytest.fixture
def sshd6(own_sshd: Callable[..., Sshd]) -> Sshd:
    return own_sshd(address="::1")


@pytest.mark.parametrize("name", ["::1", "[::1]", "0:0:0:0:0:0:0:1"])
@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_peer_is_reached_by_its_ipv6_address(
    leaves_nothing: None, sshd6: Sshd, collect: Path, target: Path, name: str, transport: str
) -> None:
    (collect / "a").write_bytes(b"a")
    known = sshd6.known_hosts.read_text()
    assert known.startswith(f"[::1]:{sshd6.port} ")
    options = sshd6.options(known_hosts=known.replace("::1", name.strip("[]")).encode())
    peer = RemotePeer(name, str(collect), "/tmp", sshd6.user, ssh=options, transport=transport)
    with peer:
        assert peer.stagePeer(str(target)) == 1
        peer.writeStageIndicator()
    assert "from ::1 port" in sshd6.log


def test_an_ipv6_address_comes_from_the_configuration_too(
    sshd6: Sshd, collect: Path, target: Path, config: Path
) -> None:
    config.write_text(lines_for(sshd6, "AddressFamily inet6", "BindAddress ::1"))
    (collect / "a").touch()
    assert peer_of(sshd6, collect).stagePeer(str(target)) == 1
    with pytest.raises(UnknownHostKey, match=rf"\[::1\]:{sshd6.port}|::1"):
        peer_of(sshd6, collect, known_hosts=()).stagePeer(str(target))


def test_a_family_that_an_address_is_not_of_is_a_clear_error(
    leaves_nothing: None, sshd6: Sshd, collect: Path, target: Path, config: Path
) -> None:
    config.write_text(lines_for(sshd6, "AddressFamily inet"))
    with pytest.raises(ConnectError, match=r"::1 can not be resolved to an IPv4 address.*AddressFamily"):
        peer_of(sshd6, collect).stagePeer(str(target))
    config.write_text("AddressFamily inet6\n")
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1 can not be resolved to an IPv6 address"):
        peer_of(sshd6, collect, "127.0.0.1").stagePeer(str(target))


@pytest.mark.parametrize("user", ["", "{user}@"])
def test_a_hop_has_an_ipv6_address_and_so_has_the_peer_behind_it(
    leaves_nothing: None,
    own_sshd: Callable[..., Sshd],
    sshd6: Sshd,
    collect: Path,
    target: Path,
    config: Path,
    user: str,
) -> None:
    gate = own_sshd(address="::1")
    (gate.home / "authorized_keys").write_bytes((sshd6.home / "id.pub").read_bytes())
    config.write_text(lines_for(sshd6, f"ProxyJump {user.format(user=gate.user)}[::1]:{gate.port}"))
    (collect / "a").touch()
    known = sshd6.known_hosts.read_bytes() + gate.known_hosts.read_bytes()
    assert peer_of(sshd6, collect, known_hosts=known).stagePeer(str(target)) == 1
    assert gate.log.count("Accepted publickey") == 1
