"""The first connection is retried if the peer may be booting, and only then."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import paramiko
import pytest

from cli.command import Command
from peerstage import Limits, RemotePeer, Retry
from peerstage.errors import (
    Cancelled,
    ChangedHostKey,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    LimitExceeded,
    LoginError,
    StageError,
)
from support import ssh_server
from support.broken_peers import DisconnectsOnSubsystem, RefusesLogin
from support.file_server import Master, ServesFiles, serves_files
from support.ssh_server import Handler, count_connections, in_turn, listening, paramiko_handler
from support.sshd import Sshd
from support.system_faults import Faults

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def quick(**retry: int) -> Retry:
    """Return a `Retry` with a short delay."""
    return Retry(delay=0.01, **retry)


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


@pytest.fixture
def ready(collect: Path) -> Path:
    (collect / "cback.collect").touch()
    return collect


def peer_of(master: Master, collect: Path, retry: Retry, name: str = "db1", **changes: Any) -> RemotePeer:
    return RemotePeer(name, str(collect), "/tmp", "backup", retry=retry, **{"ssh": master.options(), **changes})


@contextlib.contextmanager
def when_logged(words: str, then: Callable[[], object]) -> Iterator[None]:
    """Call *then* when *words* are logged for the first time."""

    class Waits(logging.Handler):
        left = 1

        def emit(self, record: logging.LogRecord) -> None:
            if self.left and words in record.getMessage():
                self.left = 0
                then()

    handler, logger = Waits(), logging.getLogger("peerstage.transport")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def late() -> Iterator[socket.socket]:
    """A socket that is bound to a port, and does not listen yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def test_server_that_listens_late_is_reached(master: Master, ready: Path, target: Path, late: socket.socket) -> None:
    master.add_host("db1", late.getsockname()[1])
    peer = peer_of(master, ready, quick(connect=3))
    with contextlib.ExitStack() as running:
        with when_logged("Attempt 3 of 3", lambda: running.enter_context(listening(serves_files(master.key), late))):
            assert peer.stagePeer(str(target)) == 1
        assert peer.last_report is not None
        assert peer.last_report.retries == 0, "retries count lost connections only"


def test_command_line_option_sets_the_retries(
    master: Master, ready: Path, late: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retry, "pause", lambda self, attempt: 0.01)
    master.add_host("db1", late.getsockname()[1])
    command = Command(cast(Sshd, None))
    words = [*master.arguments(), "--retries", "0", "--connect-retries"]
    for verb in ("check", "mark", "stage"):
        done = command(verb, *words, "-1", f"backup@db1:{ready}", *([ready.parent] if verb == "stage" else []))
        assert done.returncode == 2
    done = command("check", *words, "1", f"backup@db1:{ready}")
    assert done.returncode == 4
    assert re.search(r" 2 attempts in \d+ s\.", done.stderr.splitlines()[-1])
    with contextlib.ExitStack() as running:
        with when_logged("Attempt 2 of 2", lambda: running.enter_context(listening(serves_files(master.key), late))):
            done = command("stage", *words, "1", f"backup@db1:{ready}", ready.parent)
        assert (done.returncode, (ready.parent / "cback.collect").exists()) == (0, True)


@pytest.mark.parametrize(
    "closes", [ssh_server.closes_at_once, ssh_server.rejects_address, ssh_server.resets_connection]
)
def test_connection_closed_before_the_banner_is_retried(master: Master, ready: Path, closes: Handler) -> None:
    handler, served = count_connections(in_turn(closes, closes, serves_files(master.key)))
    with listening(handler) as port:
        master.add_host("db1", port)
        assert peer_of(master, ready, quick(connect=3)).checkCollectIndicator()
    assert len(served) == 3


def failure_of(peer: RemotePeer) -> StageError:
    with pytest.raises(StageError) as caught:
        peer.writeStageIndicator()
    return caught.value


def without_common_cipher(transport: Any) -> None:
    transport._preferred_ciphers = ("3des-cbc",)


#: Permanent refusals: a handler, and the error.
FINAL: dict[str, tuple[Callable[[Master], Handler], type[StageError]]] = {
    "a host key": (lambda master: serves_files(paramiko.ECDSAKey.generate()), ChangedHostKey),
    "a login": (lambda master: serves_files(master.key, RefusesLogin), LoginError),
    "another protocol": (lambda master: ssh_server.speaks_http, ConnectError),
    "algorithms": (lambda master: paramiko_handler(key=master.key, prepare=without_common_cipher), ConnectError),
}


@pytest.mark.parametrize("refusal", FINAL)
def test_permanent_refusal_is_not_retried(master: Master, ready: Path, refusal: str) -> None:
    serve, kind = FINAL[refusal]
    handler, served = count_connections(serve(master))
    with listening(handler) as port:
        master.add_host("db1", port)
        error = failure_of(peer_of(master, ready, quick(connect=5)))
    assert type(error) is kind
    assert "attempts" not in str(error)
    assert len(served) == 1


def test_invalid_configuration_is_not_retried(master: Master, ready: Path) -> None:
    handler, served = count_connections(ssh_server.closes_at_once)
    with listening(handler) as port:
        master.add_host("db1", port, "CanonicalizeHostname yes")
        error = failure_of(peer_of(master, ready, quick(connect=5)))
    assert type(error) is ConfigurationError
    assert "attempts" not in str(error)
    assert not served


@pytest.mark.parametrize(("code", "times"), [(socket.EAI_AGAIN, 3), (socket.EAI_NONAME, 1)])
def test_temporary_failure_of_name_resolution_is_retried(
    master: Master, ready: Path, monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def answer(host: str, *others: Any) -> Any:
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(code, "no answer")
        return resolve(host, *others)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with listening(serves_files(master.key)) as port:
        master.add_host("db1", port)
        assert peer_of(master, ready, quick(connect=3)).checkCollectIndicator() == (times == 3)
    assert len(asked) == times


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        *((code, True) for code in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)),
        *((code, True) for code in (errno.ETIMEDOUT, errno.EHOSTDOWN)),
        *((code, False) for code in (errno.EACCES, errno.EADDRNOTAVAIL, errno.EMFILE)),
    ],
    ids=str,
)
def test_error_number_decides_whether_to_retry(master: Master, ready: Path, number: int, passes: bool) -> None:
    master.add_host("db1", 1)
    peer = peer_of(master, ready, quick(connect=2))
    with Faults().failing(lambda call: call.name == "connect_ex", number):
        error = failure_of(peer)
    assert ("2 attempts" in str(error)) == passes, "the second attempt finds the port closed"


def test_default_is_one_attempt(master: Master, ready: Path) -> None:
    handler, served = count_connections(ssh_server.closes_at_once)
    with listening(handler) as port:
        master.add_host("db1", port)
        assert "attempt" not in str(failure_of(peer_of(master, ready, Retry())))
    assert len(served) == 1


def test_last_error_names_the_number_of_attempts_and_the_next_step(
    master: Master, ready: Path, late: socket.socket
) -> None:
    master.add_host("db1", late.getsockname()[1])
    error = failure_of(peer_of(master, ready, quick(connect=4)))
    assert type(error) is ConnectError
    assert str(error).startswith("db1: 127.0.0.1 port ")
    advice = r"4 attempts in \d+ s\. If the host takes longer to boot, increase Retry\(connect=\.\.\.\) or "
    advice += r"--connect-retries\."
    assert re.search(f" {advice}$", str(error))


def test_connect_attempts_and_lost_connections_are_counted_separately(
    master: Master, ready: Path, target: Path
) -> None:
    closes, leaves = ssh_server.closes_at_once, serves_files(master.key, DisconnectsOnSubsystem)
    handler, served = count_connections(in_turn(closes, closes, leaves, leaves, serves_files(master.key)))
    with listening(handler) as port:
        master.add_host("db1", port)
        peer = peer_of(master, ready, quick(connect=3, tries=3))
        assert peer.stagePeer(str(target)) == 1
    assert len(served) == 5
    assert peer.last_report is not None
    assert peer.last_report.retries == 2


def test_repeatedly_lost_connection_is_counted(master: Master, ready: Path) -> None:
    handler, served = count_connections(serves_files(master.key, DisconnectsOnSubsystem))
    with listening(handler) as port:
        master.add_host("db1", port)
        error = failure_of(peer_of(master, ready, quick(connect=5, tries=2)))
    assert type(error) is ConnectionLost
    assert re.search(r" 2 attempts in \d+ s\. Check the network and the log of the peer's sshd", str(error))
    assert len(served) == 2


def test_deadline_ends_the_retries_and_keeps_their_error(master: Master, ready: Path, late: socket.socket) -> None:
    master.add_host("db1", late.getsockname()[1])
    patient = Retry(connect=10, delay=3600, max_delay=3600)
    error = failure_of(peer_of(master, ready, patient, limits=Limits(deadline=0.3)))
    assert type(error) is LimitExceeded
    assert "Connection refused" in str(error)
    assert re.search(r" 1 attempt in \d+ s\. The operation did not complete within 0\.3 s \(Limits\.d", str(error))


def test_cancel_ends_the_retries_at_once(master: Master, ready: Path, late: socket.socket) -> None:
    master.add_host("db1", late.getsockname()[1])
    peer = peer_of(master, ready, Retry(connect=10, delay=3600, max_delay=3600))
    with peer, when_logged("Attempt 2 of 10", peer.cancel):
        assert type(failure_of(peer)) is Cancelled


def test_failed_proxy_command_is_retried(master: Master, ready: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    master.add_host("db1", 22, f"ProxyCommand sh -c 'echo >>{record}; exit 1'")
    error = failure_of(peer_of(master, ready, quick(connect=3)))
    assert type(error) is ConnectError
    assert record.read_text() == "\n\n\n"


class Jump(ServesFiles):
    """A jump host that cannot connect to the peer."""

    code = paramiko.OPEN_FAILED_CONNECT_FAILED

    def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
        return self.code


class ForbidsJumps(Jump):
    """A jump host that forbids forwarding."""

    code = paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


@pytest.mark.parametrize(("policy", "times"), [(Jump, 3), (ForbidsJumps, 1)])
def test_jump_host_is_retried_unless_it_forbids_forwarding(
    master: Master, ready: Path, policy: type[Jump], times: int
) -> None:
    handler, served = count_connections(serves_files(master.key, policy))
    with listening(handler) as port:
        master.add_host("gate", port)
        master.add_host("db1", 22, "ProxyJump gate", known=False)
        assert type(failure_of(peer_of(master, ready, quick(connect=3)))) is ConnectError
    assert len(served) == times


@pytest.mark.parametrize("attempts", [0, -1, 1.5, True, "3"])
def test_invalid_number_of_attempts_is_a_value_error(attempts: Any) -> None:
    with pytest.raises(ValueError, match="Retry: connect must be an integer of at least 1"):
        Retry(connect=attempts)
