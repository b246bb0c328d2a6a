"""Many peers at once: errors of one of them, and of the caller."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.command import Command
from peerstage.cli.access import Access
from peerstage.cli.parallel import THREADS, run_in_parallel
from peerstage.errors import Cancelled, ConnectError, StageError
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("leaves_nothing")
PEERS = range(3 * THREADS)


class Asked:
    """Returns for the first peer at once, and for the others when they are cancelled."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ended: list[StageError] = []
        self.all_busy = threading.Event()

    def __call__(self, peer: int, watchdog: Watchdog) -> str:
        self.began.append(peer)
        if peer == 0:
            return "ready"
        if len(self.began) > THREADS:
            self.all_busy.set()
        try:
            watchdog.sleep(600)
        except StageError as exc:
            self.ended.append(exc)
            raise
        return "late"


def test_closing_the_generator_cancels_running_operations_and_starts_no_other() -> None:
    asked = Asked()
    answers = run_in_parallel(asked, PEERS, lambda peer: Limits())
    assert next(answers) == "ready"
    assert asked.all_busy.wait(30)
    answers.close()
    assert [type(one) for one in asked.ended] == [Cancelled] * THREADS
    assert sorted(asked.began) == list(range(THREADS + 1))


def test_an_error_of_the_caller_cancels_the_rest() -> None:
    asked = Asked()

    def read() -> None:
        with contextlib.closing(run_in_parallel(asked, PEERS, lambda peer: Limits())) as answers:
            for _ in answers:
                assert asked.all_busy.wait(30)
                raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        read()
    assert len(asked.ended) == THREADS


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(24, "Too many open files"), MemoryError()])
def test_an_unexpected_error_of_one_peer_does_not_affect_the_others(error: Exception) -> None:
    def ask(peer: int, watchdog: Watchdog) -> int:
        if peer == 1:
            raise error
        if peer == 2:
            raise ConnectError("refused", reason=Reason.CONNECTION_REFUSED)
        return peer

    with contextlib.closing(run_in_parallel(ask, range(4), lambda peer: Limits())) as found:
        zero, one, two, three = found
    assert (zero, three) == (0, 3)
    assert isinstance(two, ConnectError)
    assert one is error


@pytest.fixture
def one_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the operation on the peer ``breaks`` raise like a bug."""
    watched = Access.transport_to

    @contextlib.contextmanager
    def breaks(self: Access, spec: Any, watchdog: Watchdog) -> Iterator[Any]:
        if spec.host == "breaks":
            raise RuntimeError("boom")
        with watched(self, spec, watchdog) as transport:
            yield transport

    monkeypatch.setattr(Access, "transport_to", breaks)


@pytest.mark.usefixtures("one_that_breaks")
def test_a_check_of_many_peers_survives_a_bug_with_one(
    command: Command, collect: Path, assert_one_line: Callable[[str], None]
) -> None:
    (collect / "cback.collect").touch()
    specs = [command.spec(collect), "root@breaks:/x", command.spec(collect)]
    done = command.reach("check", *specs)
    assert (done.returncode, done.stdout) == (1, f"{command.sshd.host}:{collect}: ready\n" * 2)
    assert_one_line(done.stderr)
    assert done.stderr == "peerstage: breaks: unexpected error: RuntimeError: boom\n"
    done = command.reach("check", "--json", *specs)
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ready", "failed", "ready"]
    assert [json.loads(line)["exit"] for line in done.stdout.splitlines()] == [0, 1, 0]


def test_a_trust_of_many_hosts_survives_a_bug_with_one(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peerstage.cli import host_scan

    scan_host_key = host_scan.scan_host_key

    def breaks(destination: Any, *others: Any, **named: Any) -> Any:
        if destination.name == "breaks":
            raise RuntimeError("boom")
        return scan_host_key(destination, *others, **named)

    monkeypatch.setattr(host_scan, "scan_host_key", breaks)
    known, place = tmp_path / "known", f"[{command.sshd.host}]:{command.sshd.port}"
    done = command("trust", "--yes", "--no-config", "--known-hosts", known, "breaks", place)
    assert done.returncode == 1
    assert known.read_text().startswith(f"{place} ")
    assert "peerstage: breaks: unexpected error: RuntimeError: boom\n" in done.stderr
