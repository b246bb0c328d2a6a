"""TCP connections: attempts, name lookup, BindAddress, AddressFamily, IPv6."""

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
from peerstage.ssh.connect.tcp import connect_tcp
from peerstage.watchdog import Watchdog
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
    """Return a peer whose port and address only ssh's configuration has."""
    options = {"port": None, "config": None, **options}
    return RemotePeer(name, str(collect), "/tmp", server.user, ssh=server.options(**options), retry=Retry(tries=1))


def lines_for(server: Sshd, *more: str, name: str = "db1") -> str:
    settings = (f"HostName {server.host}", f"Port {server.port}", f"User {server.user}", *more)
    return f"Host {name}\n " + "\n ".join(settings) + "\n"


def connect(port: int, watchdog: Watchdog, **changes: Any) -> tuple[socket.socket, float]:
    values: dict[str, Any] = {"family": socket.AF_UNSPEC, "timeout": 2.0, "watchdog": watchdog, **changes}
    return connect_tcp("127.0.0.1", port, **values)


@pytest.fixture
def port_without_listener() -> Iterator[tuple[socket.socket, int]]:
    """A socket with a port that does not listen yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock, sock.getsockname()[1]


@pytest.mark.usefixtures("patience")
def test_a_server_that_starts_late_is_reached_by_a_later_attempt(
    port_without_listener: tuple[socket.socket, int], watchdog: Watchdog, leaves_nothing: None
) -> None:
    sock, port = port_without_listener
    with pytest.raises(ConnectError, match=r"Connection refused\."):
        connect(port, watchdog)
    timer = threading.Timer(1.5, sock.listen)
    timer.start()
    connected, left = connect(port, watchdog, attempts=10)
    connected.close()
    timer.join()
    assert 1.0 < left <= 2.0, "each attempt has the whole timeout"


def test_attempts_are_a_second_apart_and_the_error_counts_them(
    sshd: Sshd, collect: Path, config: Path, caplog: pytest.LogCaptureFixture, target: Path
) -> None:
    caplog.set_level(logging.INFO, "peerstage.ssh")
    config.write_text(f"Host db1\n HostName 127.0.0.1\n Port {free_port()}\n ConnectionAttempts 3\n")
    started = time.monotonic()
    with pytest.raises(ConnectError, match=r"Connection refused \(3 attempts\)") as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert caught.value.reason is Reason.CONNECTION_REFUSED
    assert 2.0 <= time.monotonic() - started < 10
    assert caplog.text.count("Connection refused; trying again") == 2


@pytest.mark.usefixtures("patience")
def test_each_attempt_has_a_timeout_of_its_own(watchdog: Watchdog) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        started = time.monotonic()
        with (
            socket.create_connection(("127.0.0.1", port)),
            pytest.raises(ConnectError, match=r"Connection timed out \(2 attempts\)") as caught,
        ):
            connect(port, watchdog, timeout=0.5, attempts=2)
        assert caught.value.reason is Reason.CONNECT_TIMEOUT
        assert 1.9 <= time.monotonic() - started < 8


@pytest.mark.usefixtures("patience")
def test_an_address_that_does_not_answer_leaves_time_for_the_others(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_server(("127.0.0.1", 0)) as server:
        addresses = [sock.getsockname() for sock in (full, server)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]
        with socket.create_connection(addresses[0]):
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args: found)
            sock, left = connect(22, watchdog, timeout=2.0)
        with sock:
            assert sock.getpeername() == addresses[1]
    assert 0.5 < left <= 1.0, "half of the timeout was for the first address"


def test_cancel_ends_the_attempts(port_without_listener: tuple[socket.socket, int], watchdog: Watchdog) -> None:
    threading.Timer(0.1, watchdog.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        connect(port_without_listener[1], watchdog, attempts=1000)
    assert time.monotonic() - started < 3


class HangingResolver:
    """A getaddrinfo(3) that hangs until `answers` is set.

    Attributes:
        asked: The name of each call.
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
def test_a_hanging_resolver_occupies_one_thread_for_each_name(
    leaves_nothing: None, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = HangingResolver(monkeypatch)
    try:
        for name in ("db1", "db2") * 5:
            with pytest.raises(ConnectError, match=f"The lookup of the name {name} timed out"):
                connect_tcp(name, 22, family=0, timeout=0.06, watchdog=watchdog)
        assert sorted(resolver.asked) == ["db1", "db2"]
        assert resolver.threads() == 2
    finally:
        resolver.answers.set()
    wait_until(lambda: not resolver.threads())


def test_a_late_answer_of_the_resolver_serves_the_next_attempt(
    leaves_nothing: None, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = HangingResolver(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectError, match="timed out") as caught:
            connect_tcp("db1", port, family=0, timeout=0.06, watchdog=watchdog)
        assert caught.value.reason is Reason.RESOLVER_TIMEOUT
        resolver.answers.set()
        for calls in (1, 2):
            connect_tcp("db1", port, family=0, timeout=10, watchdog=watchdog)[0].close()
            assert calls <= len(resolver.asked) <= 2
            wait_until(lambda: not resolver.threads())


def test_an_unknown_name_is_looked_up_once(watchdog: Watchdog) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectError, match=r"cannot be resolved") as caught:
        connect_tcp("no-such-host.invalid", 22, family=0, timeout=20, watchdog=watchdog, attempts=1000)
    assert caught.value.reason in (Reason.NAME_NOT_RESOLVED, Reason.RESOLVER_TIMEOUT), "the latter without a DNS server"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("address", ["127.0.0.7", "localhost"])
def test_the_connection_comes_from_bindaddress(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, address: str
) -> None:
    server = own_sshd()
    config.write_text(lines_for(server, f"BindAddress {address}"))
    (collect / "a").touch()
    assert peer_of(server, collect).stagePeer(str(target)) == 1
    seen = "127.0.0.1" if address == "localhost" else address
    assert f"Accepted publickey for {server.user} from {seen} port" in server.log


def test_a_jump_host_has_a_bindaddress_of_its_own(
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
        ("::1", "BindAddress ::1: The name ::1 cannot be resolved to an IPv4 address"),
        ("no-such-host.invalid", "BindAddress no-such-host.invalid: The name"),
    ],
)
def test_an_unusable_bindaddress_is_named(
    leaves_nothing: None, sshd: Sshd, collect: Path, target: Path, config: Path, address: str, words: str
) -> None:
    config.write_text(lines_for(sshd, f"BindAddress {address}"))
    with pytest.raises(ConnectError, match=words) as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert caught.value.reason is Reason.BIND_FAILED
    assert "firewall" not in str(caught.value)


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
def test_the_reason_of_an_error_follows_its_errno(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch, code: int, reason: Reason
) -> None:
    monkeypatch.setattr(socket.socket, "connect_ex", lambda sock, address: code)
    with pytest.raises(ConnectError) as caught:
        connect(free_port(), watchdog)
    assert (caught.value.reason, caught.value.errno) == (reason, code)


# IPv6, with a real sshd.


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


def test_a_configured_ipv6_address_is_used(sshd6: Sshd, collect: Path, target: Path, config: Path) -> None:
    config.write_text(lines_for(sshd6, "AddressFamily inet6", "BindAddress ::1"))
    (collect / "a").touch()
    assert peer_of(sshd6, collect).stagePeer(str(target)) == 1
    with pytest.raises(UnknownHostKey, match=rf"\[::1\]:{sshd6.port}|::1"):
        peer_of(sshd6, collect, known_hosts=()).stagePeer(str(target))


def test_an_address_of_another_family_than_addressfamily_is_an_error(
    leaves_nothing: None, sshd6: Sshd, collect: Path, target: Path, config: Path
) -> None:
    config.write_text(lines_for(sshd6, "AddressFamily inet"))
    with pytest.raises(ConnectError, match=r"::1 cannot be resolved to an IPv4 address.*AddressFamily"):
        peer_of(sshd6, collect).stagePeer(str(target))
    config.write_text("AddressFamily inet6\n")
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1 cannot be resolved to an IPv6 address"):
        peer_of(sshd6, collect, "127.0.0.1").stagePeer(str(target))


@pytest.mark.parametrize("user", ["", "{user}@"])
def test_a_jump_host_and_the_peer_behind_it_have_ipv6_addresses(
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
