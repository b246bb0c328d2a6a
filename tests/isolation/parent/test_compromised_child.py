"""Compromised children: each breaks the protocol in its own way, and harms nothing outside the target."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, Retry, SSHOptions, StageOptions
from peerstage.errors import (
    Cancelled,
    IncompleteStage,
    LimitExceeded,
    NothingToStage,
    ProtocolError,
    RemoteError,
    StageError,
)
from peerstage.isolation.parent.child_process import ChildProcess
from peerstage.isolation.parent.isolated_transport import IsolatedTransport
from peerstage.isolation.protocol.frames import (
    HEADER,
    Admit,
    Alive,
    AskMissing,
    Fail,
    Fallback,
    Finish,
    Frame,
    ImportFile,
    Kind,
    Log,
    Refuse,
    Reply,
    encode_frame,
)
from peerstage.reasons import Reason
from peerstage.records import Entry, Progress, RemoteFile
from peerstage.staging import probe, stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportOptions
from peerstage.transport.progress import ProgressTransport
from peerstage.watchdog import Watchdog
from support.incoming import DecliningTarget

pytestmark = pytest.mark.usefixtures("leaves_nothing")

#: A child that ignores its jobs: it writes the first file to stdout, then behaves as its last argument says. "wait":
#: reads jobs until the end, as a real child does. "endless": repeats the second file forever. "slow": writes the first
#: twenty headers of the second file over two seconds, and then the rest. "deaf" and "endless" also ignore SIGTERM.
CHILD = """
import os, sys, time, signal
first, repeated = (open(path, "rb").read() for path in sys.argv[1:3])
then = sys.argv[3]
if then in ("deaf", "endless"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if then != "deaf":
    os.read(0, 1 << 20)
while first:
    first = first[os.write(1, first):]
while then == "endless":
    rest = repeated
    while rest:
        rest = rest[os.write(1, rest):]
while then == "talk":
    os.write(2, b"la " * 20000)
if then == "crash":
    sys.stderr.write("Traceback ...\\nValueError: \\x1b[31mbad\\n")
    sys.exit(3)
if then == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if then == "close":
    os.close(1)
if then == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
if then == "slow":
    for at in range(0, 20 * 17, 17):
        os.write(1, repeated[at : at + 17])
        time.sleep(0.1)
    os.write(1, repeated[20 * 17 :])
    then = "wait"
while then == "wait" and os.read(0, 1 << 20):
    pass
if then != "wait":
    time.sleep(1000)
"""

REPLY = {"result": True, "error": None, "transport": "sftp", "host_key": None, "retries": 0}


class CompromisedChild:
    """Builds transports whose child sends given bytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.watchdog = Watchdog(Limits())

    def transport(
        self,
        first: bytes,
        then: str = "wait",
        *,
        repeated: bytes = b"",
        limits: Limits | None = None,
        uses_rcp_command: bool = False,
    ) -> IsolatedTransport:
        script, *files = (self._directory / name for name in ("child.py", "first", "repeated"))
        script.write_text(CHILD)
        for path, content in zip(files, (first, repeated), strict=True):
            path.write_bytes(content)
        command = [sys.executable, "-S", str(script), *map(str, files), then]
        return IsolatedTransport(
            TransportOptions(
                name="db1", user="backup", ssh=SSHOptions(), rcp_command="/bin/true" if uses_rcp_command else None
            ),
            None,
            limits=limits or Limits(deadline=60.0),
            retry=Retry(tries=2),
            watchdog=self.watchdog,
            start_child=lambda environment: ChildProcess(environment, command),
            grace=0.2,
        )


@pytest.fixture
def compromised_child(tmp_path: Path) -> CompromisedChild:
    return CompromisedChild(tmp_path)


def encode(*frames: Frame | bytes) -> bytes:
    return b"".join(frame if isinstance(frame, bytes) else encode_frame(frame) for frame in frames)


def listed(name: bytes, size: int = 4, number: int = 0, mode: int | None = None) -> Admit:
    return Admit(number, (Entry(name, size, mode),))


def listed_again(name: bytes, number: int) -> Admit:
    return Admit(number, (Entry(name, 4),), is_new_listing=True)


def many(count: int, size: int = 4) -> bytes:
    return encode(*(listed(b"%d" % number, size, number) for number in range(count)))


def data(number: int, offset: int, body: bytes) -> bytes:
    return HEADER.pack(Kind.DATA, number, offset, len(body)) + body


def pack(kind: Kind, body: bytes) -> bytes:
    return HEADER.pack(kind, 0, 0, len(body)) + body


def stage_through(transport: Transport, target: Path) -> Any:
    """Stage into a target that holds an old file."""
    (target / "old").write_bytes(b"old")
    with transport:
        return stage(transport, b"/collect", DirectoryTarget(str(target), peer="db1"))


def stage_some_through(transport: IsolatedTransport, target: Path) -> Any:
    """Stage into a target that declines the file ``b``."""
    with transport:
        return stage(transport, b"/collect", DecliningTarget(str(target), declined=b"b", peer="db1"))


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_child_that_writes_bytes_twice_cannot_hide_them_from_the_digest(
    compromised_child: CompromisedChild, target: Path, is_equal: bool
) -> None:
    content = random.Random(1).randbytes(8000)
    digest = hashlib.sha256(content).hexdigest().encode()
    entries = (Entry(b"SUMS", 68), Entry(b"a", 8000, None, 1))
    frames = [Admit(0, entries), data(0, 0, digest + b"  a\n"), Finish(0), data(1, 0, content[:7000])]
    frames += [Admit(2, entries[1:], is_new_listing=True), data(2, 100, content[100:200] if is_equal else bytes(100))]
    frames += [data(2, 4000, content[4000:]), Finish(2), Reply(REPLY)]
    options = StageOptions(verify="sha256", checksums="SUMS")
    with (
        compromised_child.transport(encode(*frames)) as transport,
        DirectoryTarget(str(target), options=options) as staging_target,
    ):
        transport.pull(b"/collect", staging_target)
        staging_target.commit()
        reasons = {result.name: result.reason for result in staging_target.pop_results()}
    assert reasons == {"SUMS": None, "a": None if is_equal else Reason.DIGEST_MISMATCH}


def more_ranges_than_a_file_can_have() -> bytes:
    return encode(listed(b"a", 2**21), *(data(0, 2 * at, b"x") for at in range(2**17)))


def many_files_begun_at_once() -> bytes:
    return many(5000) + encode(*(data(at, 0, b"x") for at in range(5000)))


#: What a child sends; long streams are made by the test that sends them, and not whenever tests are collected.
VIOLATIONS: dict[str, bytes | Callable[[], bytes]] = {
    "a name that leads out": encode(listed(b"../x")),
    "an absolute name": encode(listed(b"/etc")),
    "a number out of turn": encode(listed(b"a", number=7)),
    "the same number twice": encode(listed(b"a"), listed(b"b")),
    "data for no file": encode(data(0, 0, b"x")),
    "data after the end": encode(listed(b"a", 1), data(0, 0, b"x"), Finish(0), data(0, 0, b"x")),
    "data beyond the size": encode(listed(b"a", 4), data(0, 2, b"xxx")),
    "data at an offset of its own": encode(listed(b"a", 4), data(0, 2**62, b"x")),
    "the same bytes again and again": encode(listed(b"a", 4), data(0, 0, b"xxxx"), data(0, 0, b"x")),
    "the end of no open file": encode(Finish(3)),
    "the failure of no open file": encode(Fail(0, StageError("x", reason=Reason.LOCAL_FAILURE))),
    "a name twice": encode(listed(b"a"), listed(b"a", number=1)),
    "a name twice in one frame": encode(Admit(0, (Entry(b"a", 4), Entry(b"a", 4)))),
    "listings without end": encode(*(listed_again(b"a", number) for number in range(3))),
    "a number of an earlier listing": encode(listed(b"a"), listed_again(b"a", 1), data(0, 0, b"x")),
    "a question about no file": encode(listed(b"a"), AskMissing(1)),
    "a question after the end": encode(listed(b"a", 0), Finish(0), AskMissing(0)),
    "a file of a command without a workspace": encode(ImportFile(b"a")),
    "two replies": encode(Reply(REPLY), Reply(REPLY)),
    "half a frame after the reply": encode(Reply(REPLY), b"\3"),
    "an invalid retry count": encode(Reply({**REPLY, "retries": -1})),
    "an invalid fingerprint": encode(Reply({**REPLY, "host_key": "SHA256:\x1b[31m"})),
    "an unknown reason": encode(Reply({**REPLY, "error": {"kind": "RemoteError", "reason": "because", "message": ""}})),
    "an unknown error class": encode(Reply({**REPLY, "error": {"kind": "SystemExit", "message": ""}})),
    "an error that only the parent may raise": encode(
        Reply({**REPLY, "error": {"kind": "IncompleteStage", "message": ""}})
    ),
    "text": b"Welcome to db1!\n" * 100,
    "more ranges than a file can have": more_ranges_than_a_file_can_have,
    "many files begun at once": many_files_begun_at_once,
}


@pytest.mark.parametrize("first", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_protocol_violation_ends_the_run_and_publishes_nothing(
    compromised_child: CompromisedChild, target: Path, first: bytes | Callable[[], bytes]
) -> None:
    sent = first() if callable(first) else first
    with pytest.raises(ProtocolError) as caught:
        stage_through(compromised_child.transport(sent), target)
    assert files_in(target) == {b"old": b"old"}
    assert str(caught.value).startswith("db1")
    assert str(caught.value).isprintable()


BEGUN = encode(listed(b"a", 1 << 30), data(0, 0, b"begun"))

#: Frames that a child may send, without progress of the run.
WITHOUT_PROGRESS = {
    "heartbeats": encode(Alive()) * 1000,
    "log lines": encode(Log(30, "peerstage.ssh", "still here")) * 1000,
    "refusals of one name": encode(Refuse(b"b", RemoteError("x", reason=Reason.REMOTE_FAILURE))) * 1000,
}


@pytest.mark.parametrize(
    ("first", "then", "repeated", "expected"),
    [
        (b"", "sleep", b"", "Limits.deadline"),
        (BEGUN, "sleep", b"", "Limits.deadline"),
        (BEGUN, "deaf", b"", "Limits.deadline"),
        (BEGUN, "stop", b"", "Limits.deadline"),
        (BEGUN, "endless", bytes(65536), "invalid frame of kind 0"),
        *((BEGUN, "endless", frames, "Limits.deadline") for frames in WITHOUT_PROGRESS.values()),
        (BEGUN, "talk", b"", "bytes to stderr"),
        (BEGUN, "crash", b"", r"status 3.*ValueError: \x1b[31mbad"),
        (BEGUN, "kill", b"", "killed by signal 9"),
        (BEGUN, "close", b"", "closed its channels"),
    ],
    ids=["silent", "sleep", "deaf", "stop", "endless zeros", *map("endless {}".format, WITHOUT_PROGRESS),
         "talk", "crash", "kill", "close"],
)  # fmt: skip
def test_the_parent_enforces_the_deadline_on_a_child_that_is_silent_or_endless_or_dead(
    compromised_child: CompromisedChild, target: Path, first: bytes, then: str, repeated: bytes, expected: str
) -> None:
    started = time.monotonic()
    with pytest.raises(StageError) as caught:
        stage_through(compromised_child.transport(first, then, repeated=repeated, limits=Limits(deadline=0.5)), target)
    assert time.monotonic() - started < 0.5 + 5 + 2
    assert files_in(target) == {b"old": b"old"}
    message = str(caught.value)
    assert message.isprintable()
    for part in expected.split(".*"):
        assert part in message


class ShortGrace(Limits):
    """Grants half a second in place of ten minutes."""

    grace = 0.5


@pytest.mark.parametrize("is_one", [True, False], ids=["a file", "many files"])
def test_listed_bytes_and_files_do_not_extend_the_deadline(
    compromised_child: CompromisedChild, target: Path, is_one: bool
) -> None:
    promise = encode(listed(b"a", 1 << 30)) if is_one else many(5000)
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"Limits\.deadline, min_rate"):
        stage_through(
            compromised_child.transport(promise, limits=ShortGrace(listing_bytes=400_000, min_rate=1 << 20)), target
        )
    assert time.monotonic() - started < 0.5 + 5 + 2
    assert files_in(target) == {b"old": b"old"}


@pytest.mark.parametrize("has_progress", [True, False])
def test_a_child_may_list_files_again_after_progress(
    compromised_child: CompromisedChild, target: Path, has_progress: bool
) -> None:
    connections = [
        encode(
            Admit(number, (Entry(b"a", 4),), is_new_listing=number > 0),
            data(number, 0, b"x" * (number + 1)) if has_progress else b"",
        )
        for number in range(4)
    ]
    sent = encode(*connections, Finish(3), Reply(REPLY))
    if not has_progress:
        with pytest.raises(ProtocolError, match="listed files more often"):
            stage_through(compromised_child.transport(sent), target)
        return
    assert stage_through(compromised_child.transport(sent), target).count == 1
    assert files_in(target) == {b"old": b"old", b"a": b"xxxx"}


@pytest.mark.parametrize("then", ["sleep", "deaf", "stop"])
def test_the_parent_enforces_the_stall_timeout_on_a_child_that_falls_silent(
    compromised_child: CompromisedChild, target: Path, then: str
) -> None:
    with pytest.raises(LimitExceeded, match=r"sent nothing for 0\.5 s \(Limits\.stall_timeout\)"):
        stage_through(compromised_child.transport(BEGUN, then, limits=Limits(stall_timeout=0.5)), target)
    assert files_in(target) == {b"old": b"old"}


def test_the_parent_waits_for_a_child_with_a_slow_peer(compromised_child: CompromisedChild, target: Path) -> None:
    later = encode(*[Alive()] * 20, data(0, 0, b"late"), Finish(0), Reply(REPLY))
    stage_through(
        compromised_child.transport(encode(listed(b"a")), "slow", repeated=later, limits=Limits(stall_timeout=0.5)),
        target,
    )
    assert (target / "a").read_bytes() == b"late"


def test_files_that_do_not_fit_on_the_disk_are_refused_before_any_data(
    compromised_child: CompromisedChild, target: Path
) -> None:
    half = os.statvfs(target).f_blocks * os.statvfs(target).f_frsize // 2 + 1
    for sent in (encode(listed(b"a", 2**43)), encode(listed(b"a", half), listed(b"b", half, 1))):
        with pytest.raises(StageError, match="Free some space"):
            stage_through(compromised_child.transport(sent), target)
    assert files_in(target) == {b"old": b"old"}


def test_files_that_exceed_the_total_are_refused_before_any_data(
    compromised_child: CompromisedChild, target: Path
) -> None:
    with pytest.raises(LimitExceeded, match=r"Limits\.total_bytes"):
        stage_through(compromised_child.transport(encode(listed(b"a", 2**62))), target)
    assert files_in(target) == {b"old": b"old"}


def test_the_limits_on_names_are_enforced(compromised_child: CompromisedChild, target: Path) -> None:
    few = Limits(entries=10, name_bytes=20)
    refused = encode(*(Refuse(b"%d" % at, RemoteError("x", reason=Reason.REMOTE_FAILURE)) for at in range(11)))
    for sent in (refused, many(11), encode(listed(b"x" * 21))):
        with pytest.raises(LimitExceeded, match=r"Limits\.(entries|name_bytes)"):
            stage_through(compromised_child.transport(sent, limits=few), target)


def test_a_lying_child_can_only_deliver_wrong_bytes_for_files_of_this_run(
    compromised_child: CompromisedChild, target: Path
) -> None:
    sent = encode(
        listed(b"a", 4, mode=0o6777),
        data(0, 0, b"evil"),
        Finish(0),
        listed(b"b", 4, number=1),
        data(1, 0, b"half"[:2]),
        Finish(1),
        Reply({**REPLY, "retries": 3, "host_key": "SHA256:" + "x" * 43, "transport": "\x1b", "count": 1000}),
    )
    with pytest.raises(IncompleteStage) as caught:
        stage_through(compromised_child.transport(sent), target)
    report = caught.value.report
    assert report is not None
    assert (report.count, report.bytes) == (1, 4), "only what the parent has counted"
    assert report.transport == "sftp"
    assert files_in(target) == {b"old": b"old", b"a": b"evil"}
    assert (target / "a").stat().st_mode & 0o7000 == 0


def test_a_child_that_sends_no_files_has_staged_nothing(compromised_child: CompromisedChild, target: Path) -> None:
    with pytest.raises(NothingToStage):
        stage_through(compromised_child.transport(encode(Reply(REPLY))), target)


def test_a_file_that_was_listed_and_never_finished_is_not_published(
    compromised_child: CompromisedChild, target: Path
) -> None:
    with pytest.raises(IncompleteStage, match="no longer lists it"):
        stage_through(compromised_child.transport(encode(listed(b"a"), data(0, 0, b"full"), Reply(REPLY))), target)
    assert files_in(target) == {b"old": b"old"}


def test_a_job_without_files_rejects_files(compromised_child: CompromisedChild) -> None:
    with (
        compromised_child.transport(encode(listed(b"a"))) as transport,
        pytest.raises(ProtocolError, match="none were requested"),
    ):
        probe(transport, b"/collect/cback.collect")


def stat_through(compromised_child: CompromisedChild, result: object) -> RemoteFile | None:
    """Return what `probe` finds through a child that replies with *result*."""
    with compromised_child.transport(encode(Reply({**REPLY, "result": result}))) as transport:
        return probe(transport, b"/collect/cback.collect")


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, None),
        ([None, None], RemoteFile()),
        ([0, 0], RemoteFile(0, 0)),
        ([2**64 - 1, 2**32 - 1], RemoteFile(2**64 - 1, 2**32 - 1)),
    ],
)
def test_a_child_may_report_any_file_that_sftp_can_describe(
    compromised_child: CompromisedChild, result: object, found: RemoteFile | None
) -> None:
    assert stat_through(compromised_child, result) == found


@pytest.mark.parametrize(
    "result",
    [
        True,
        False,
        0,
        "file",
        {},
        {"size": 0, "mtime": 0},
        [],
        [0],
        [0, 0, 0],
        [-1, 0],
        [0, -1],
        [2**64, 0],
        [0, 2**32],
        [True, 0],
        [0, False],
        [0.0, 0],
        [0, 1e9],
        ["0", 0],
        [[0], 0],
    ],
    ids=str,
)
def test_a_child_that_reports_an_impossible_file_ends_the_run(
    compromised_child: CompromisedChild, result: object
) -> None:
    with pytest.raises(ProtocolError, match="child process sent an invalid") as caught:
        stat_through(compromised_child, result)
    assert caught.value.reason is Reason.CHILD_VIOLATION


def test_error_messages_of_a_child_are_escaped_and_truncated(compromised_child: CompromisedChild, target: Path) -> None:
    error = {"kind": "RemoteError", "reason": "not-a-directory", "message": "\x1b[31m\u202e" + "x" * 20_000}
    with pytest.raises(RemoteError) as caught:
        stage_through(compromised_child.transport(encode(Reply({**REPLY, "error": error}))), target)
    assert caught.value.reason is Reason.NOT_A_DIRECTORY
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 6000


def test_log_lines_are_limited_in_number_and_to_loggers_of_the_child(
    compromised_child: CompromisedChild, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def line(logger: str, text: str) -> bytes:
        return pack(Kind.LOG, json.dumps([30, logger, text]).encode())

    sent = line("root", "foreign") + line("peerstage.ssh", "\x1b[31m\nforged") * 3000 + encode(Reply(REPLY))
    with pytest.raises(NothingToStage):
        stage_through(compromised_child.transport(sent), target)
    assert len(caplog.records) <= 1000
    assert {record.name for record in caplog.records} == {"peerstage.ssh"}
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize(
    ("then", "repeated"), [("deaf", b""), *(("endless", frames) for frames in WITHOUT_PROGRESS.values())]
)
def test_cancel_ends_a_child_that_ignores_signals(
    compromised_child: CompromisedChild, target: Path, then: str, repeated: bytes
) -> None:
    transport = compromised_child.transport(BEGUN, then, repeated=repeated, limits=Limits(deadline=60))
    ended = threading.Event()

    def cancel_once_begun() -> None:
        while not list(target.glob(".peerstage-*/0")) and not ended.wait(0.01):
            pass
        compromised_child.watchdog.cancel()

    thread = threading.Thread(target=cancel_once_begun)
    thread.start()
    try:
        with pytest.raises(Cancelled):
            stage_through(transport, target)
    finally:
        ended.set()
        thread.join()
    assert files_in(target) == {b"old": b"old"}


@pytest.mark.parametrize("make", ["link", "fifo", "directory", "hard link", "gone", "foreign"])
def test_nothing_outside_the_workspace_of_a_command_is_read(
    compromised_child: CompromisedChild, target: Path, tmp_path: Path, make: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    traps: dict[str, Callable[[str], object]] = {
        "link": lambda workspace: os.symlink(secret, f"{workspace}/a"),
        "fifo": lambda workspace: os.mkfifo(f"{workspace}/a"),
        "directory": lambda workspace: os.mkdir(f"{workspace}/a"),
        "hard link": lambda workspace: os.link(secret, f"{workspace}/a"),
        "gone": lambda workspace: None,
        "foreign": lambda workspace: (Path(f"{workspace}/a").write_bytes(b"x"), os.chown(f"{workspace}/a", 1234, 1234)),
    }
    transport = compromised_child.transport(encode(ImportFile(b"a"), Reply(REPLY)), uses_rcp_command=True)
    require_child = transport._require_child

    def set_trap(time_limits: Any) -> ChildProcess:
        (workspace,) = target.glob(".peerstage-*/workspace")
        traps[make](str(workspace))
        return require_child(time_limits)

    transport._require_child = set_trap  # type: ignore[method-assign]
    with pytest.raises(IncompleteStage, match="not a regular file"):
        stage_through(transport, target)
    assert files_in(target) == {b"old": b"old"}
    assert secret.read_bytes() == b"secret"


def test_a_frame_of_the_largest_size_is_accepted(compromised_child: CompromisedChild, target: Path) -> None:
    body = os.urandom(4 << 20)
    assert stage_through(
        compromised_child.transport(encode(listed(b"a", len(body)), data(0, 0, body), Finish(0), Reply(REPLY))), target
    )
    assert (target / "a").read_bytes() == body


def test_a_child_that_sends_a_declined_file_breaks_the_protocol(
    compromised_child: CompromisedChild, target: Path
) -> None:
    both = Admit(0, (Entry(b"a", 4), Entry(b"b", 4)), wants_answer=True)
    good = encode(both, data(0, 0, b"good"), Finish(0), Reply(REPLY))
    assert stage_some_through(compromised_child.transport(good), target).count == 1
    for bad in (encode(both, data(1, 0, b"evil")), encode(both, Finish(1)), encode(both, AskMissing(1))):
        with pytest.raises(ProtocolError, match="not admitted"):
            stage_some_through(compromised_child.transport(bad), target)
    assert files_in(target) == {b"a": b"good"}


@pytest.mark.parametrize("last", [AskMissing(0), Reply(REPLY)])
def test_a_child_that_does_not_read_the_answers_that_it_asks_for_breaks_the_protocol(
    compromised_child: CompromisedChild, target: Path, last: Frame
) -> None:
    asks = encode(listed(b"a"), *[AskMissing(0)] * 5000, last)
    with pytest.raises(ProtocolError, match="does not read the answers"):
        stage_through(compromised_child.transport(asks, "sleep"), target)
    assert files_in(target) == {b"old": b"old"}


def test_the_data_of_a_file_that_is_not_wanted_is_dropped_if_the_child_did_not_ask(
    compromised_child: CompromisedChild, target: Path
) -> None:
    (target / "taken").mkdir()
    sent = encode(
        listed(b"taken"), listed(b"a", number=1), data(0, 0, b"dro"), data(1, 0, b"good"), Finish(1), Finish(0),
        Reply(REPLY),
    )  # fmt: skip
    with pytest.raises(IncompleteStage, match="A directory has this name"):
        stage_through(compromised_child.transport(sent), target)
    assert (target / "a").read_bytes() == b"good"


def test_once_a_child_has_fallen_back_to_scp_totals_are_unknown(
    compromised_child: CompromisedChild, target: Path
) -> None:
    sent = encode(Fallback(), listed(b"a"), data(0, 0, b"good"), Finish(0), Reply({**REPLY, "transport": "scp"}))
    reports: list[Progress] = []
    stage_through(ProgressTransport(compromised_child.transport(sent), reports.append), target)
    assert {(report.files_total, report.bytes_total) for report in reports} == {(None, None)}
