"""Every line of the log names its peer, and paramiko says nothing beside."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import Retry
from peerstage.session import dial
from support import ssh_server
from support.broken_peers import (
    BROKEN,
    Case,
    Leaves,
    error_of,
    peer_of,
    refuses_connections,
    served_by,
    serves,
)
from support.file_server import Master, ServesFiles, serves_files
from support.ssh_server import in_turn, listening, made_of_paramiko

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


class SpeaksOfTheUnknown(ServesFiles):
    """Sends data of a type that nobody knows (RFC 4254, 5.2), and then too much."""

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
        master.learn("db1", 1, "ConnectionAttempts 2")
        yield {}


@contextlib.contextmanager
def over_scp_that_says_much(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """Reached by an rcp command."""
    script = collect.parent / "copy"
    script.write_text("#!/bin/sh\necho copying 100%s\nexit 1\n")
    script.chmod(0o755)
    yield {"rcpCommand": str(script)}


@contextlib.contextmanager
def behind_a_jump_host(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """Behind a jump host that lets us in, and gets nowhere."""
    with listening(serves(master)) as port:
        master.learn("gate", port, "StrictHostKeyChecking ask", "Ciphers +aes128-cbc")
        master.learn("db1", 22, "ProxyJump gate", known=False)
        yield {}


@contextlib.contextmanager
def with_odd_files(master: Master, collect: Path) -> Iterator[dict[str, Any]]:
    """Known by a file with lines that cannot be read; in its target lies what is none of ours."""
    odd = collect.parent / "odd"
    odd.write_text("nonsense\n")
    (collect.parent / "target" / ".peerstage-full").mkdir()
    (collect.parent / "target" / ".peerstage-full" / "file").touch()
    with listening(serves(master)) as port:
        master.learn("db1", port, "StrictHostKeyChecking no", "PKCS11Provider /none")
        known = (str(collect.parent / "known_hosts"), str(odd), str(collect))
        yield {"ssh": master.options(known_hosts=known)}


class HasNothing(ssh_server.RefusesSubsystems):
    """Has no SFTP, and runs nothing."""

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return False


#: How peers are broken, and what is then logged.
LOGGED: dict[str, tuple[Case, tuple[str, ...]]] = {
    **{how: (case, ()) for how, (case, _, _) in BROKEN.items()},
    "new": (served_by(serves, "StrictHostKeyChecking accept-new", known=False), ("db1: SHA256:", "is added to")),
    "tries again to connect": (
        served_by(lambda master: in_turn(ssh_server.closes_at_once, serves(master)), retry=Retry(connect=2, delay=0)),
        ("it hangs up. Is an SSH server listening there? [closed-before-banner] Attempt 2 of 2",),
    ),
    "tries again": (
        served_by(lambda master: in_turn(serves_files(master.key, Leaves), serves(master))),
        ("The connection was lost: the peer closed it. [connection-lost] Attempt 2 of 2",),
    ),
    "connects again as ssh does": (refuses_connections_twice, ("Connection refused; trying again.",)),
    "no SFTP": (
        served_by(lambda master: made_of_paramiko(HasNothing, key=master.key)),
        ("Falling back to SCP.", "run no command"),
    ),
    "no strict key exchange": (
        served_by(lambda master: serves_files(master.key, strict_kex=False)),
        ("the server has no strict key exchange",),
    ),
    "speaks of the unknown": (
        served_by(lambda master: serves_files(master.key, SpeaksOfTheUnknown)),
        ("unknown extended_data type 7",),
    ),
    "jump host": (
        behind_a_jump_host,
        (
            "db1, jump host gate: StrictHostKeyChecking is taken as yes",
            "db1, jump host gate: ciphers at",
            "db1, jump host gate: logged in as",
            "db1, jump host gate: Secsh channel",
        ),
    ),
    "command": (over_scp_that_says_much, ("said: copying 100%s",)),
    "odd files": (
        with_odd_files,
        (
            "/odd:1 can not be read",
            "/collect can not be read",
            "The leftover .peerstage-full could not be removed",
            "pkcs11provider is ignored",
            "staged 1 files",
        ),
    ),
}


@pytest.mark.parametrize("how", LOGGED)
def test_every_line_names_its_peer_and_paramiko_says_nothing_beside(
    master: Master,
    collect: Path,
    target: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(dial, "_PAUSE", 0.01)
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
    """Fail unless all that was logged of one peer names it, and is ours."""
    client = [record for record in records if record.name.partition(".")[0] != ssh_server.LOGGER]
    ours = [record for record in client if record.name.partition(".")[0] == "peerstage"]
    assert ours
    assert [record for record in client if record not in ours] == []
    assert [record.getMessage() for record in ours if not record.getMessage().startswith(peer)] == []
    assert all(record.getMessage().isprintable() for record in ours)
    assert {record.levelno for record in ours if record.name == "peerstage.ssh"} <= {logging.DEBUG}


@pytest.mark.usefixtures("fresh_interpreter")
def test_every_line_of_a_child_names_its_peer(
    master: Master, collect: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (None, "peerstage", "paramiko"):
        caplog.set_level(logging.DEBUG, name)
    handler = in_turn(serves_files(master.key, Leaves), serves(master))
    (collect / "a").write_bytes(b"a")
    with listening(handler) as port:
        master.learn("db1", port)
        assert peer_of(master, collect, isolated=True).stagePeer(str(target)) == 1
    check_lines(caplog.records, "db1")
    assert {"peerstage.ssh", "peerstage.session", "peerstage.transport"} <= {one.name for one in caplog.records}


def test_other_users_of_paramiko_log_as_before(master: Master, collect: Path) -> None:
    logger = logging.getLogger("paramiko")
    logger.setLevel(logging.NOTSET)
    before = logger.handlers[:]
    with served_by(serves)(master, collect):
        peer_of(master, collect).checkCollectIndicator()
    assert (logger.level, logger.handlers) == (logging.NOTSET, before)
