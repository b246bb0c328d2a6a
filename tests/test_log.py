"""Every log line names its peer, and paramiko logs nothing by itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Retry
from peerstage.ssh.connect import tcp
from support import ssh_server
from support.broken_peers import (
    BROKEN_PEERS,
    DisconnectsOnSubsystem,
    PeerCase,
    error_of,
    peer_of,
    refuses_connections,
    served_by,
    serves,
)
from support.file_server import Master, ServesFiles, serves_files
from support.ssh_server import in_turn, listening, paramiko_handler

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


class SendsUnknownDataType(ServesFiles):
    """Sends extended data of an unknown type (RFC 4254, section 5.2)."""

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        super().check_channel_subsystem_request(channel, name)
        message = paramiko.Message()
        message.add_byte(b"\x5f")
        for number in (0, 7):
            message.add_int(number)
        message.add_string("100%s of it")
        hidden: Any = channel.get_transport()
        hidden._send_message(message)
        return True


@contextlib.contextmanager
def refuses_connections_twice(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    with refuses_connections(master, collect):
        master.add_host("db1", 1, "ConnectionAttempts 2")
        yield {}


@contextlib.contextmanager
def by_a_verbose_command(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """Copies by an rcp command with much output."""
    script = collect.parent / "copy"
    script.write_text("#!/bin/sh\necho copying 100%s\nexit 1\n")
    script.chmod(0o755)
    yield {"rcpCommand": str(script)}


@contextlib.contextmanager
def behind_a_jump_host(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """Behind a jump host that accepts the login and cannot connect any further."""
    with listening(serves(master)) as port:
        master.add_host("gate", port, "StrictHostKeyChecking ask", "Ciphers +aes128-cbc")
        master.add_host("db1", 22, "ProxyJump gate", known=False)
        yield {}


@contextlib.contextmanager
def with_odd_files(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """Has a known_hosts file with invalid lines, and a foreign entry in the target."""
    odd = collect.parent / "odd"
    odd.write_text("nonsense\n")
    (collect.parent / "target" / ".peerstage-00000000").mkdir()
    (collect.parent / "target" / ".peerstage-00000000" / "file").touch()
    with listening(serves(master)) as port:
        master.add_host("db1", port, "StrictHostKeyChecking no", "PKCS11Provider /none")
        known = (str(collect.parent / "known_hosts"), str(odd), str(collect))
        yield {"ssh": master.options(known_hosts=known)}


class RunsNothing(ssh_server.RefusesSubsystems):
    """Has no SFTP, and runs no commands."""

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return False


#: Broken peers, and what is logged.
LOGGED: dict[str, tuple[PeerCase, tuple[str, ...]]] = {
    **{how: (case, ()) for how, (case, _, _) in BROKEN_PEERS.items()},
    "new": (served_by(serves, "StrictHostKeyChecking accept-new", known=False), ("db1: SHA256:", "is added to")),
    "tries again to connect": (
        served_by(lambda master: in_turn(ssh_server.closes_at_once, serves(master)), retry=Retry(connect=2, delay=0)),
        ("identified itself. Check that an SSH server listens on this port. [closed-before-banner] Attempt 2 of 2",),
    ),
    "tries again": (
        served_by(lambda master: in_turn(serves_files(master.key, DisconnectsOnSubsystem), serves(master))),
        ("The connection was lost: the peer closed it. [connection-lost] Attempt 2 of 2",),
    ),
    "connects again as ssh does": (refuses_connections_twice, ("Connection refused; trying again.",)),
    "no SFTP": (
        served_by(lambda master: paramiko_handler(RunsNothing, key=master.key)),
        ("Falling back to SCP.", "not let this login run commands"),
    ),
    "no strict key exchange": (
        served_by(lambda master: serves_files(master.key, strict_kex=False)),
        ("the server has no strict key exchange",),
    ),
    "unknown data type": (
        served_by(lambda master: serves_files(master.key, SendsUnknownDataType)),
        ("unknown extended_data type 7",),
    ),
    "jump host": (
        behind_a_jump_host,
        (
            "db1, jump host gate: StrictHostKeyChecking is treated as yes",
            "db1, jump host gate: Ciphers in ",
            "db1, jump host gate: logged in as",
            "db1, jump host gate: Secsh channel",
        ),
    ),
    "command": (by_a_verbose_command, ("printed: copying 100%s",)),
    "odd files": (
        with_odd_files,
        (
            "/odd:1 is invalid",
            "/collect cannot be read",
            "/.peerstage-00000000 could not be removed",
            "PKCS11Provider is ignored",
            "staged 1 files",
        ),
    ),
}


@pytest.mark.parametrize("how", LOGGED)
def test_every_line_names_its_peer_and_paramiko_logs_nothing_by_itself(
    master: Master,
    collect: Path,
    target: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(tcp, "_RETRY_INTERVAL", 0.01)
    case, expected = LOGGED[how]
    for name in (None, "peerstage", "paramiko", ssh_server.LOGGER):
        caplog.set_level(logging.DEBUG, name)
    (collect / "a").write_bytes(b"a")
    with case(master, collect) as changes:
        peer = peer_of(master, collect, **changes)
        peer.checkCollectIndicator()
        for operation in (lambda: peer.stagePeer(str(target)), peer.writeStageIndicator):
            error_of(operation)
    check_lines(caplog.records, "db1")
    assert [words for words in expected if words not in caplog.text] == []


def check_lines(records: list[logging.LogRecord], peer: str) -> None:
    """Fail unless every line begins with *peer* and is from a logger of peerstage."""
    client = [record for record in records if record.name.partition(".")[0] != ssh_server.LOGGER]
    ours = [record for record in client if record.name.partition(".")[0] == "peerstage"]
    assert ours
    assert [record for record in client if record not in ours] == []
    assert [record.getMessage() for record in ours if not record.getMessage().startswith(peer)] == []
    assert all(record.getMessage().isprintable() for record in ours)
    assert {record.levelno for record in ours if record.name == "peerstage.ssh.paramiko"} <= {logging.DEBUG}


@pytest.mark.usefixtures("fresh_interpreter")
def test_every_line_of_a_child_process_names_its_peer(
    master: Master, collect: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (None, "peerstage", "paramiko"):
        caplog.set_level(logging.DEBUG, name)
    handler = in_turn(serves_files(master.key, DisconnectsOnSubsystem), serves(master))
    (collect / "a").write_bytes(b"a")
    with listening(handler) as port:
        master.add_host("db1", port)
        assert peer_of(master, collect, isolated=True).stagePeer(str(target)) == 1
    check_lines(caplog.records, "db1")
    assert {"peerstage.ssh.paramiko", "peerstage.ssh", "peerstage.transport"} <= {
        record.name for record in caplog.records
    }


def test_the_log_of_other_users_of_paramiko_is_unchanged(master: Master, collect: Path) -> None:
    logger = logging.getLogger("paramiko")
    logger.setLevel(logging.NOTSET)
    before = logger.handlers[:]
    with served_by(serves)(master, collect):
        peer_of(master, collect).checkCollectIndicator()
    assert (logger.level, logger.handlers) == (logging.NOTSET, before)
