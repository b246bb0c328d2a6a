"""RekeyLimit: new keys as often as is configured, by us, by the server, or by both at once, and nothing is lost."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, RemotePeer, Retry
from peerstage.session._paramiko.packets import BoundedPacketizer
from peerstage.session.config import resolve_destination
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog
from support.sshd import Sshd
from support.waiting import wait_until

MIB = 1 << 20
#: What sshd writes down at this level of every key exchange.
SEEN = "SSH2_MSG_KEXINIT received"
VERBOSE = "LogLevel DEBUG1"


@pytest.fixture
def config(own_home: Path) -> Path:
    return own_home / "config"


def peer_of(server: Sshd, collect: Path, config: Path, transport: str = "sftp") -> RemotePeer:
    options = server.options(config=str(config))
    return RemotePeer(
        server.host, str(collect), "/tmp", server.user, ssh=options, transport=transport, retry=Retry(tries=1)
    )


def fill(collect: Path, big: int, small: int) -> dict[str, str]:
    """Lay files into the collect directory; return their digests."""
    block = os.urandom(MIB)
    with (collect / "big").open("wb") as file:
        for number in range(big):
            file.write(number.to_bytes(4, "big") + block[4:])
    for number in range(small):
        (collect / f"small{number}").write_bytes(os.urandom(4000))
    return digests(collect)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_large_file_and_small_ones_survive_new_keys_after_each_mebibyte(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, transport: str
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text("RekeyLimit 1M\n")
    expected = fill(collect, 40, 300)
    peer_of(server, collect, config, transport).stagePeer(str(target))
    assert digests(target) == expected
    assert server.log.count(SEEN) >= 12, "what is under way does not stop at once"


@pytest.mark.parametrize(
    ("transport", "ours"),
    [*((one, "256K") for one in ("sftp", "scp")), ("sftp", "255K"), ("sftp", "1M"), ("scp", "64K")],
)
def test_keys_are_asked_for_by_both_sides_at_once(
    leaves_nothing: None,
    own_sshd: Callable[..., Sshd],
    collect: Path,
    target: Path,
    config: Path,
    transport: str,
    ours: str,
) -> None:
    server = own_sshd(extra=f"{VERBOSE}\nRekeyLimit 256K")
    config.write_text(f"RekeyLimit {ours}\n")
    expected = fill(collect, 10, 200)
    peer_of(server, collect, config, transport).stagePeer(str(target))
    assert digests(target) == expected
    assert server.log.count(SEEN) >= 30


@pytest.mark.parametrize(
    "algorithms",
    [
        "Ciphers aes256-gcm@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-512",
        "Ciphers aes128-ctr\nMACs hmac-sha2-256-etm@openssh.com",
    ],
)
def test_the_limit_holds_for_every_cipher_and_what_is_sent_counts_too(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], config: Path, algorithms: str
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text(f"RekeyLimit 100K\n{algorithms}\n")
    with_session(server, config, lambda session: send(session, 2 * MIB))
    assert server.log.count(SEEN) >= 15


def test_keys_are_made_anew_after_a_time_even_if_little_is_said(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], config: Path
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text("RekeyLimit default 1\n")

    def wait_for(line: str, times: int) -> Callable[[Session], None]:
        """Say nothing until the server has written a line so many times; then show that the connection is good."""

        def wait(session: Session) -> None:
            stream = session.open_command(b"read word; echo $word")
            wait_until(lambda: server.log.count(line) >= times)
            stream.send(b"done\n")
            assert bytes(stream.receive()) == b"done\n"

        return wait

    started = time.monotonic()
    with_session(server, config, wait_for(SEEN, 3))
    assert server.log.count(SEEN) <= time.monotonic() - started + 2, "one for the login, and one each second"
    config.write_text("RekeyLimit default none\nServerAliveInterval 1\n")
    before = server.log.count(SEEN)
    with_session(server, config, wait_for("keepalive@openssh.com", 2))
    assert server.log.count(SEEN) - before == 1


def test_the_smallest_limit_lets_the_login_and_a_small_stage_through(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text("RekeyLimit 16\n")
    expected = fill(collect, 0, 20)
    peer_of(server, collect, config).stagePeer(str(target))
    assert digests(target) == expected
    assert server.log.count(SEEN) >= 3


@pytest.mark.parametrize(
    ("text", "size", "seconds"),
    [
        ("", 1 << 30, 3600.0),
        ("RekeyLimit default none\n", 1 << 30, None),
        ("RekeyLimit 4G\n", 4 << 30, 3600.0),
        ("RekeyLimit 1M 30\n", MIB, 30.0),
        ("RekeyLimit 1T\n", 1 << 36, 3600.0),
    ],
)
def test_without_a_limit_keys_serve_a_gibibyte_and_an_hour(
    own_sshd: Callable[..., Sshd], config: Path, text: str, size: int, seconds: float | None
) -> None:
    server = own_sshd()
    config.write_text(text)

    def look(session: Any) -> None:
        packets: BoundedPacketizer = session._transport.packetizer
        assert (packets.REKEY_BYTES, packets._rekey_seconds, packets.may_rekey) == (size, seconds, True)

    with_session(server, config, look)


def with_session(server: Sshd, config: Path, use: Callable[[Session], object]) -> None:
    """Do something with a session."""
    options = server.options(config=str(config))
    destination = resolve_destination(server.host, server.user, options)
    watchdog = Watchdog(Limits())
    session = Session.connect(destination, options, limits=Limits(), watchdog=watchdog)
    try:
        use(session)
    finally:
        session.close()
        watchdog.close()


def send(session: Session, size: int) -> None:
    """Send so many bytes, and have them counted."""
    stream = session.open_command(b"wc -c")
    for _ in range(size // 32768):
        stream.send(os.urandom(32768))
    stream.end()
    assert int(bytes(stream.receive())) == size
