"""RekeyLimit (ssh_config(5)): rekeys started by us, by the server, or by both at once lose no data."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer, Retry, StageOptions
from peerstage.ssh._paramiko.packetizer import BoundedPacketizer
from peerstage.ssh.session import Session
from support.logins import open_session
from support.sshd import Sshd
from support.waiting import wait_until

MIB = 1 << 20
#: What sshd logs of every key exchange at this level.
KEXINIT = "SSH2_MSG_KEXINIT received"
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
    """Create files in the collect directory; return their digests."""
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
def test_files_survive_a_rekey_per_mebibyte(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, transport: str
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text("RekeyLimit 1M\n")
    expected = fill(collect, 40, 300)
    peer_of(server, collect, config, transport).stagePeer(str(target))
    assert digests(target) == expected
    assert server.log.count(KEXINIT) >= 12, "data in flight postpones each rekey"


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_files_survive_rekeys_and_keepalives_under_a_bandwidth_limit(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, transport: str
) -> None:
    server = own_sshd(extra=f"{VERBOSE}\nClientAliveInterval 1\nClientAliveCountMax 1")
    config.write_text("RekeyLimit 64K\nServerAliveInterval 1\nServerAliveCountMax 1\n")
    expected = fill(collect, 1, 20)
    peer = peer_of(server, collect, config, transport)
    peer.stage = StageOptions(bwlimit=1 << 20)
    peer.stagePeer(str(target))
    assert digests(target) == expected
    assert server.log.count(KEXINIT) >= 6, "data in flight postpones each rekey"


@pytest.mark.parametrize(
    ("transport", "ours"),
    [*((one, "256K") for one in ("sftp", "scp")), ("sftp", "255K"), ("sftp", "1M"), ("scp", "64K")],
)
def test_both_sides_may_rekey_at_once(
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
    assert server.log.count(KEXINIT) >= 30


@pytest.mark.parametrize(
    "algorithms",
    [
        "Ciphers aes256-gcm@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-512",
        "Ciphers aes128-ctr\nMACs hmac-sha2-256-etm@openssh.com",
    ],
)
def test_rekey_limit_holds_for_every_cipher_and_for_sent_data(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], config: Path, algorithms: str
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text(f"RekeyLimit 100K\n{algorithms}\n")
    with_session(server, config, lambda session: send(session, 2 * MIB))
    assert server.log.count(KEXINIT) >= 15


def test_rekey_after_a_time_without_traffic(leaves_nothing: None, own_sshd: Callable[..., Sshd], config: Path) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text("RekeyLimit default 1\n")

    def wait_for(line: str, times: int) -> Callable[[Session], None]:
        """Send nothing until the server has logged *line* that many *times*; then use the connection."""

        def wait(session: Session) -> None:
            stream = session.open_command(b"read word; echo $word")
            wait_until(lambda: server.log.count(line) >= times)
            stream.send(b"done\n")
            assert bytes(stream.receive()) == b"done\n"

        return wait

    started = time.monotonic()
    with_session(server, config, wait_for(KEXINIT, 3))
    assert server.log.count(KEXINIT) <= time.monotonic() - started + 2, "one for the connection, and one per second"
    config.write_text("RekeyLimit default none\nServerAliveInterval 1\n")
    before = server.log.count(KEXINIT)
    with_session(server, config, wait_for("keepalive@openssh.com", 2))
    assert server.log.count(KEXINIT) - before == 1


def test_smallest_rekey_limit_still_allows_login_and_stage(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path
) -> None:
    server = own_sshd(extra=VERBOSE)
    config.write_text("RekeyLimit 16\n")
    expected = fill(collect, 0, 20)
    peer_of(server, collect, config).stagePeer(str(target))
    assert digests(target) == expected
    assert server.log.count(KEXINIT) >= 3


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
def test_default_rekey_limit_is_a_gibibyte_and_an_hour(
    own_sshd: Callable[..., Sshd], config: Path, text: str, size: int, seconds: float | None
) -> None:
    server = own_sshd()
    config.write_text(text)

    def look(session: Any) -> None:
        packets: BoundedPacketizer = session._transport.packetizer
        assert (packets.REKEY_BYTES, packets._rekey_seconds, packets.may_rekey) == (size, seconds, True)

    with_session(server, config, look)


def with_session(server: Sshd, config: Path, use: Callable[[Session], object]) -> None:
    """Call *use* with a session."""
    with open_session(server.host, server.user, server.options(config=str(config))) as (session, _):
        use(session)


def send(session: Session, size: int) -> None:
    """Send *size* bytes; assert that all arrive."""
    stream = session.open_command(b"wc -c")
    for _ in range(size // 32768):
        stream.send(os.urandom(32768))
    stream.send_eof()
    assert int(bytes(stream.receive())) == size
