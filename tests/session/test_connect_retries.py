"""The first connection is tried again where a peer may be booting, and nowhere else."""

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
from support.broken_peers import Leaves, Unwilling
from support.file_server import Master, ServesFiles, serves_files
from support.ssh_server import Handler, counting, in_turn, listening, made_of_paramiko
from support.sshd import Sshd
from support.system_faults import Faults

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def quick(**retry: int) -> Retry:
    """Return a `Retry` that hardly waits."""
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
    """Call *then* when a line with *words* is logged for the first time."""

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
    """A socket that has its port, and does not listen yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def test_a_server_that_listens_after_the_second_attempt_is_reached(
    master: Master, ready: Path, target: Path, late: socket.socket
) -> None:
    master.learn("db1", late.getsockname()[1])
    peer = peer_of(master, ready, quick(connect=3))
    with contextlib.ExitStack() as running:
        with when_logged("Attempt 3 of 3", lambda: running.enter_context(listening(serves_files(master.key), late))):
            assert peer.stagePeer(str(target)) == 1
        assert peer.last_report is not None
        assert peer.last_report.retries == 0, "no connection was lost"


def test_the_command_line_has_as_many_retries(master: Master, ready: Path, late: socket.socket) -> None:
    master.learn("db1", late.getsockname()[1])
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


@pytest.mark.parametrize("closes", [ssh_server.closes_at_once, ssh_server.turns_away, ssh_server.resets])
def test_a_server_that_closes_before_its_banner_twice_is_asked_a_third_time(
    master: Master, ready: Path, closes: Handler
) -> None:
    handler, served = counting(in_turn(closes, closes, serves_files(master.key)))
    with listening(handler) as port:
        master.learn("db1", port)
        assert peer_of(master, ready, quick(connect=3)).checkCollectIndicator()
    assert len(served) == 3


def failure_of(peer: RemotePeer) -> StageError:
    with pytest.raises(StageError) as caught:
        peer.writeStageIndicator()
    return caught.value


def without_common_cipher(transport: Any) -> None:
    transport._preferred_ciphers = ("3des-cbc",)


#: What refuses for good: how it is served, and the error.
FINAL: dict[str, tuple[Callable[[Master], Handler], type[StageError]]] = {
    "a host key": (lambda master: serves_files(paramiko.ECDSAKey.generate()), ChangedHostKey),
    "a login": (lambda master: serves_files(master.key, Unwilling), LoginError),
    "another protocol": (lambda master: ssh_server.speaks_http, ConnectError),
    "algorithms": (lambda master: made_of_paramiko(key=master.key, prepare=without_common_cipher), ConnectError),
}


@pytest.mark.parametrize("refusal", FINAL)
def test_what_is_refused_for_good_is_asked_once(master: Master, ready: Path, refusal: str) -> None:
    serve, kind = FINAL[refusal]
    handler, served = counting(serve(master))
    with listening(handler) as port:
        master.learn("db1", port)
        error = failure_of(peer_of(master, ready, quick(connect=5)))
    assert type(error) is kind
    assert "attempts" not in str(error)
    assert len(served) == 1


def test_a_configuration_that_is_refused_is_read_once(master: Master, ready: Path) -> None:
    handler, served = counting(ssh_server.closes_at_once)
    with listening(handler) as port:
        master.learn("db1", port, "CanonicalizeHostname yes")
        error = failure_of(peer_of(master, ready, quick(connect=5)))
    assert type(error) is ConfigurationError
    assert "attempts" not in str(error)
    assert not served


@pytest.mark.parametrize(("code", "times"), [(socket.EAI_AGAIN, 3), (socket.EAI_NONAME, 1)])
def test_a_name_is_looked_up_again_if_the_name_server_is_out_of_reach(
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
        master.learn("db1", port)
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
def test_what_the_system_says_of_a_connection_decides_whether_it_is_tried_again(
    master: Master, ready: Path, number: int, passes: bool
) -> None:
    master.learn("db1", 1)
    peer = peer_of(master, ready, quick(connect=2))
    with Faults().failing(lambda call: call.name == "connect_ex", number):
        error = failure_of(peer)
    assert ("2 attempts" in str(error)) == passes, "the second finds a port that is closed"


def test_by_default_there_is_one_attempt(master: Master, ready: Path) -> None:
    handler, served = counting(ssh_server.closes_at_once)
    with listening(handler) as port:
        master.learn("db1", port)
        assert "attempt" not in str(failure_of(peer_of(master, ready, Retry())))
    assert len(served) == 1


def test_after_the_last_attempt_the_error_says_how_many_there_were_and_what_to_do(
    master: Master, ready: Path, late: socket.socket
) -> None:
    master.learn("db1", late.getsockname()[1])
    error = failure_of(peer_of(master, ready, quick(connect=4)))
    assert type(error) is ConnectError
    assert str(error).startswith("db1: 127.0.0.1 port ")
    advice = r"4 attempts in \d+ s\. If it takes longer to boot, raise Retry\(connect=\.\.\.\) or --connect-retries\."
    assert re.search(f" {advice}$", str(error))


def test_attempts_to_connect_and_connections_that_were_lost_are_counted_apart(
    master: Master, ready: Path, target: Path
) -> None:
    closes, leaves = ssh_server.closes_at_once, serves_files(master.key, Leaves)
    handler, served = counting(in_turn(closes, closes, leaves, leaves, serves_files(master.key)))
    with listening(handler) as port:
        master.learn("db1", port)
        peer = peer_of(master, ready, quick(connect=3, tries=3))
        assert peer.stagePeer(str(target)) == 1
    assert len(served) == 5
    assert peer.last_report is not None
    assert peer.last_report.retries == 2


def test_a_connection_that_is_lost_again_and_again_is_counted_too(master: Master, ready: Path) -> None:
    handler, served = counting(serves_files(master.key, Leaves))
    with listening(handler) as port:
        master.learn("db1", port)
        error = failure_of(peer_of(master, ready, quick(connect=5, tries=2)))
    assert type(error) is ConnectionLost
    assert re.search(r" 2 attempts in \d+ s\. Check the network and the log of the peer's sshd", str(error))
    assert len(served) == 2


def test_the_deadline_ends_the_attempts_and_says_what_they_failed_with(
    master: Master, ready: Path, late: socket.socket
) -> None:
    master.learn("db1", late.getsockname()[1])
    patient = Retry(connect=10, delay=3600, most=3600)
    error = failure_of(peer_of(master, ready, patient, limits=Limits(deadline=0.3)))
    assert type(error) is LimitExceeded
    assert "Connection refused" in str(error)
    assert re.search(r" 1 attempt in \d+ s\. Not done within 0\.3 s \(Limits\.deadline", str(error))


def test_cancel_ends_the_attempts_at_once(master: Master, ready: Path, late: socket.socket) -> None:
    master.learn("db1", late.getsockname()[1])
    peer = peer_of(master, ready, Retry(connect=10, delay=3600, most=3600))
    with peer, when_logged("Attempt 2 of 10", peer.cancel):
        assert type(failure_of(peer)) is Cancelled


def test_a_proxy_command_that_fails_is_run_again(master: Master, ready: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    master.learn("db1", 22, f"ProxyCommand sh -c 'echo >>{record}; exit 1'")
    error = failure_of(peer_of(master, ready, quick(connect=3)))
    assert type(error) is ConnectError
    assert record.read_text() == "\n\n\n"


class Jump(ServesFiles):
    """Gets nowhere as a jump host."""

    code = paramiko.OPEN_FAILED_CONNECT_FAILED

    def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
        return self.code


class ForbidsJumps(Jump):
    """Lets nobody jump."""

    code = paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


@pytest.mark.parametrize(("policy", "times"), [(Jump, 3), (ForbidsJumps, 1)])
def test_a_jump_host_that_does_not_get_there_is_asked_again_and_not_one_that_forbids_it(
    master: Master, ready: Path, policy: type[Jump], times: int
) -> None:
    handler, served = counting(serves_files(master.key, policy))
    with listening(handler) as port:
        master.learn("gate", port)
        master.learn("db1", 22, "ProxyJump gate", known=False)
        assert type(failure_of(peer_of(master, ready, quick(connect=3)))) is ConnectError
    assert len(served) == times


@pytest.mark.parametrize("attempts", [0, -1, 1.5, True, "3"])
def test_a_number_of_attempts_is_1_or_more(attempts: Any) -> None:
    with pytest.raises(ValueError, match="Retry: connect must be 1 or more"):
        Retry(connect=attempts)
