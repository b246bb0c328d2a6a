"""Children that were taken over: each says something else than it should, and harms nothing outside the target."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import Limits, Retry, SSHOptions
from peerstage.errors import (
    Cancelled,
    IncompleteStage,
    LimitExceeded,
    NothingToStage,
    ProtocolError,
    RemoteError,
    StageError,
)
from peerstage.isolation.frames import (
    HEADER,
    Adopt,
    Alive,
    Expect,
    Fail,
    Finish,
    Kind,
    Log,
    Open,
    Record,
    Refuse,
    Result,
    Shared,
    encode,
)
from peerstage.isolation.process import Child
from peerstage.isolation.transport import IsolatedTransport
from peerstage.reasons import Reason
from peerstage.records import Entry
from peerstage.session.watchdog import Watchdog
from peerstage.staging import probe, stage
from peerstage.testing.contract import landed
from peerstage.transport.choose import Route

pytestmark = pytest.mark.usefixtures("leaves_nothing")

#: Says what lies in the first file, whatever it is asked, and then does what its last argument says: "wait" for more
#: jobs as a real child does, be "endless": say what lies in the second file again and again, or "slow": say its first
#: twenty headers one by one, for two seconds, and then the rest.
PUPPET = """
import os, sys, time, signal
said, again = (open(path, "rb").read() for path in sys.argv[1:3])
then = sys.argv[3]
if then in ("deaf", "endless"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if then != "deaf":
    os.read(0, 1 << 20)
while said:
    said = said[os.write(1, said):]
while then == "endless":
    left = again
    while left:
        left = left[os.write(1, left):]
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
        os.write(1, again[at : at + 17])
        time.sleep(0.1)
    os.write(1, again[20 * 17 :])
    then = "wait"
while then == "wait" and os.read(0, 1 << 20):
    pass
if then != "wait":
    time.sleep(1000)
"""

DONE = {"value": True, "error": None, "transport": "sftp", "host_key": None, "retries": 0, "no_sftp": False}


class Puppet:
    """Makes transports whose child says what it is told to."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.watchdog = Watchdog(Limits())

    def transport(
        self,
        said: bytes,
        then: str = "wait",
        *,
        again: bytes = b"",
        limits: Limits | None = None,
        by_command: bool = False,
    ) -> IsolatedTransport:
        script, *words = (self._place / name for name in ("puppet.py", "said", "again"))
        script.write_text(PUPPET)
        for path, content in zip(words, (said, again), strict=True):
            path.write_bytes(content)
        command = [sys.executable, "-S", str(script), *map(str, words), then]
        return IsolatedTransport(
            Route(name="db1", user="backup", ssh=SSHOptions(), rcp_command="/bin/true" if by_command else None),
            None,
            limits=limits or Limits(deadline=10.0),
            retry=Retry(tries=2),
            watchdog=self.watchdog,
            start=lambda environment: Child(environment, command),
            grace=0.2,
        )


@pytest.fixture
def puppet(tmp_path: Path) -> Puppet:
    return Puppet(tmp_path)


def wire(*records: Record | bytes) -> bytes:
    return b"".join(one if isinstance(one, bytes) else encode(one) for one in records)


def opened(name: bytes, size: int = 4, slot: int = 0, mode: int | None = None) -> Open:
    return Open(slot, Entry(name, size, mode))


def data(slot: int, offset: int, body: bytes) -> bytes:
    return HEADER.pack(Kind.DATA, slot, offset, len(body)) + body


def tries(transport: IsolatedTransport, target: Path) -> Any:
    """Stage through it into a target with an old file; whatever happens, nothing else is in reach."""
    (target / "old").write_bytes(b"old")
    with transport:
        return stage(transport, b"/collect", str(target), peer="db1")


BAD = {
    "a name that leads out": wire(HEADER.pack(Kind.OPEN, 0, 1, 16) + bytes(12) + b"../x"),
    "an absolute name": wire(HEADER.pack(Kind.OPEN, 0, 1, 16) + bytes(12) + b"/etc"),
    "a number out of turn": wire(opened(b"a", slot=7)),
    "the same number twice": wire(opened(b"a"), opened(b"b")),
    "data for no file": wire(data(0, 0, b"x")),
    "data after the end": wire(opened(b"a", 1), data(0, 0, b"x"), Finish(0), data(0, 0, b"x")),
    "data beyond the size": wire(opened(b"a", 4), data(0, 2, b"xxx")),
    "data at an offset of its own": wire(opened(b"a", 4), data(0, 2**62, b"x")),
    "the same bytes again and again": wire(opened(b"a", 4), data(0, 0, b"xxxx"), data(0, 0, b"x")),
    "an end for no file": wire(Finish(3)),
    "a failure for no file": wire(Fail(0, StageError("x", reason=Reason.LOCAL_FAILURE))),
    "more files than announced": wire(Expect(1, 4), opened(b"a"), opened(b"b", slot=1)),
    "more bytes than announced": wire(Expect(2, 4), opened(b"a"), opened(b"b", 1, slot=1)),
    "announcements without end": wire(*[Expect(1, 1)] * 3),
    "an adopted file and no workspace": wire(Adopt(b"a")),
    "a result and more": wire(Result(DONE), Result(DONE)),
    "half a frame behind the result": wire(Result(DONE), b"\3"),
    "a result that is none": wire(Result({**DONE, "retries": -1})),
    "a fingerprint that is none": wire(Result({**DONE, "host_key": "SHA256:\x1b[31m"})),
    "a reason that is unknown": wire(
        Result({**DONE, "error": {"kind": "RemoteError", "reason": "because", "message": ""}})
    ),
    "an error that is none": wire(Result({**DONE, "error": {"kind": "SystemExit", "message": ""}})),
    "an error that only root can know": wire(Result({**DONE, "error": {"kind": "IncompleteStage", "message": ""}})),
    "text": b"Welcome to db1!\n" * 100,
    "more pieces than a file can have": wire(opened(b"a", 2**21), *(data(0, 2 * at, b"x") for at in range(2**17))),
    "bytes that lie nowhere": wire(opened(b"a", 4), Shared(0, 0, 2**40, 4, 0)),
    "bytes that lie beyond the end": wire(opened(b"a", 1 << 22), Shared(0, 0, 1, 1 << 22, 0)),
    "shared bytes beyond the size": wire(opened(b"a", 4), Shared(0, 2, 0, 4, 2**64 - 1)),
    "many files begun at once": wire(*(opened(b"%d" % at, 4, slot=at) for at in range(5000))),
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
def test_what_a_child_may_not_say_ends_the_run_and_publishes_nothing(puppet: Puppet, target: Path, said: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        tries(puppet.transport(said), target)
    assert landed(target) == {b"old": b"old"}
    assert str(caught.value).startswith("db1")
    assert str(caught.value).isprintable()


BEGUN = wire(opened(b"a", 1 << 30), data(0, 0, b"begun"))

#: Frames that a child may send, and that bring the run no further.
POINTLESS = {
    "signs of life": wire(Alive()) * 1000,
    "log lines": wire(Log(30, "peerstage.session", "still here")) * 1000,
    "refusals of one name": wire(Refuse(b"b", RemoteError("x", reason=Reason.REMOTE_FAILURE))) * 1000,
}


@pytest.mark.parametrize(
    ("said", "then", "again", "expected"),
    [
        (b"", "sleep", b"", "Limits.deadline"),
        (BEGUN, "sleep", b"", "Limits.deadline"),
        (BEGUN, "deaf", b"", "Limits.deadline"),
        (BEGUN, "stop", b"", "Limits.deadline"),
        (BEGUN, "endless", bytes(65536), "a frame of kind 0"),
        *((BEGUN, "endless", frames, "Limits.deadline") for frames in POINTLESS.values()),
        (BEGUN, "talk", b"", "too much on stderr"),
        (BEGUN, "crash", b"", r"status 3.*ValueError: \x1b[31mbad"),
        (BEGUN, "kill", b"", "killed by signal 9"),
        (BEGUN, "close", b"", "closed its channels"),
    ],
    ids=["silent", "sleep", "deaf", "stop", "endless zeros", *map("endless {}".format, POINTLESS),
         "talk", "crash", "kill", "close"],
)  # fmt: skip
def test_a_child_that_is_silent_endless_or_dead_ends_within_the_deadline_from_outside(
    puppet: Puppet, target: Path, said: bytes, then: str, again: bytes, expected: str
) -> None:
    started = time.monotonic()
    with pytest.raises(StageError) as caught:
        tries(puppet.transport(said, then, again=again, limits=Limits(deadline=0.5)), target)
    assert time.monotonic() - started < 0.5 + 5 + 2
    assert landed(target) == {b"old": b"old"}
    words = str(caught.value)
    assert words.isprintable()
    for part in expected.split(".*"):
        assert part in words


class HardlyAnyGrace(Limits):
    """Grants half a second in the place of ten minutes."""

    grace = 0.5


@pytest.mark.parametrize("promise", [wire(opened(b"a", 1 << 30)), wire(Expect(1, 1 << 30))], ids=["a file", "a total"])
def test_what_a_child_promises_gives_it_no_more_time(puppet: Puppet, target: Path, promise: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"Limits\.deadline, min_rate"):
        tries(puppet.transport(promise, limits=HardlyAnyGrace(listing_bytes=1000)), target)
    assert time.monotonic() - started < 0.5 + 5 + 2
    assert landed(target) == {b"old": b"old"}


@pytest.mark.parametrize("brings", [True, False])
def test_a_child_may_announce_files_as_often_as_connections_make_progress(
    puppet: Puppet, target: Path, brings: bool
) -> None:
    connections = [
        wire(Expect(1, 4), opened(b"a", slot=slot), data(slot, 0, b"x" * (slot + 1)) if brings else b"")
        for slot in range(4)
    ]
    said = wire(*connections, Finish(3), Result(DONE))
    if not brings:
        with pytest.raises(ProtocolError, match="announces files more often"):
            tries(puppet.transport(said), target)
        return
    assert tries(puppet.transport(said), target).count == 1
    assert landed(target) == {b"old": b"old", b"a": b"xxxx"}


@pytest.mark.parametrize("then", ["sleep", "deaf", "stop"])
def test_a_child_that_falls_silent_is_ended_by_the_stall_bound_from_outside(
    puppet: Puppet, target: Path, then: str
) -> None:
    with pytest.raises(LimitExceeded, match=r"said nothing for 0\.5 s \(Limits\.stall_timeout\)"):
        tries(puppet.transport(BEGUN, then, limits=Limits(stall_timeout=0.5)), target)
    assert landed(target) == {b"old": b"old"}


def test_a_child_whose_peer_takes_its_time_is_waited_for(puppet: Puppet, target: Path) -> None:
    later = wire(*[Alive()] * 20, data(0, 0, b"late"), Finish(0), Result(DONE))
    tries(puppet.transport(wire(opened(b"a")), "slow", again=later, limits=Limits(stall_timeout=0.5)), target)
    assert (target / "a").read_bytes() == b"late"


def test_a_promise_that_does_not_fit_on_the_disk_is_refused_before_a_byte(puppet: Puppet, target: Path) -> None:
    for said in (wire(Expect(1, 2**62)), wire(opened(b"a", 2**62))):
        with pytest.raises(StageError, match="Make room"):
            tries(puppet.transport(said), target)
    assert landed(target) == {b"old": b"old"}


def test_more_names_than_limits_allow_are_refused(puppet: Puppet, target: Path) -> None:
    few = Limits(entries=10, name_bytes=20)
    many = wire(*(Refuse(b"%d" % at, RemoteError("x", reason=Reason.REMOTE_FAILURE)) for at in range(11)))
    for said in (many, wire(Expect(11, 1)), wire(opened(b"x" * 21))):
        with pytest.raises(LimitExceeded, match=r"Limits\.(entries|name_bytes)"):
            tries(puppet.transport(said, limits=few), target)
    again = wire(*(opened(b"a", 4, slot=at) for at in range(21)))
    with pytest.raises(ProtocolError, match="more often"):
        tries(puppet.transport(again, limits=few), target)


def test_a_child_that_lies_delivers_wrong_bytes_for_files_of_this_run_and_no_more(puppet: Puppet, target: Path) -> None:
    said = wire(
        Expect(2, 8),
        opened(b"a", 4, mode=0o6777),
        data(0, 0, b"evil"),
        Finish(0),
        opened(b"b", 4, slot=1),
        data(1, 0, b"half"[:2]),
        Finish(1),
        Result({**DONE, "retries": 3, "host_key": "SHA256:" + "x" * 43, "transport": "\x1b", "count": 1000}),
    )
    with pytest.raises(IncompleteStage) as caught:
        tries(puppet.transport(said), target)
    report = caught.value.report
    assert report is not None
    assert (report.count, report.bytes) == (1, 4), "only what was counted on this side"
    assert report.transport == "sftp"
    assert landed(target) == {b"old": b"old", b"a": b"evil"}
    assert (target / "a").stat().st_mode & 0o7000 == 0


def test_a_child_that_brings_nothing_has_staged_nothing(puppet: Puppet, target: Path) -> None:
    with pytest.raises(NothingToStage):
        tries(puppet.transport(wire(Result(DONE))), target)


def test_a_file_that_was_opened_and_never_finished_is_not_published(puppet: Puppet, target: Path) -> None:
    with pytest.raises(IncompleteStage, match="before it was complete"):
        tries(puppet.transport(wire(opened(b"a"), data(0, 0, b"full"), Result(DONE))), target)
    assert landed(target) == {b"old": b"old"}


def test_files_are_not_taken_by_a_job_that_asked_for_none(puppet: Puppet) -> None:
    with puppet.transport(wire(opened(b"a"))) as transport, pytest.raises(ProtocolError, match="none were asked"):
        probe(transport, b"/collect/cback.collect")


def test_the_words_of_a_child_are_escaped_and_cut(puppet: Puppet, target: Path) -> None:
    error = {"kind": "RemoteError", "reason": "not-a-directory", "message": "\x1b[31m\u202e" + "x" * 20_000}
    with pytest.raises(RemoteError) as caught:
        tries(puppet.transport(wire(Result({**DONE, "error": error}))), target)
    assert caught.value.reason is Reason.NOT_A_DIRECTORY
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 6000


def test_log_lines_without_end_are_dropped_and_their_rooms_are_ours(
    puppet: Puppet, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def line(room: str, text: str) -> bytes:
        body = json.dumps([room, text]).encode()
        return HEADER.pack(Kind.LOG, 30, 0, len(body)) + body

    said = line("root", "foreign") + line("peerstage.session", "\x1b[31m\nforged") * 3000 + wire(Result(DONE))
    with pytest.raises(NothingToStage):
        tries(puppet.transport(said), target)
    assert len(caplog.records) <= 1000
    assert {record.name for record in caplog.records} == {"peerstage.session"}
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize(("then", "again"), [("deaf", b""), *(("endless", frames) for frames in POINTLESS.values())])
def test_cancel_ends_a_child_that_heeds_nothing(puppet: Puppet, target: Path, then: str, again: bytes) -> None:
    transport = puppet.transport(BEGUN, then, again=again, limits=Limits(deadline=60))
    ended = threading.Event()

    def cancel_once_begun() -> None:
        while not list(target.glob(".peerstage-*/0")) and not ended.wait(0.01):
            pass
        puppet.watchdog.cancel()

    thread = threading.Thread(target=cancel_once_begun)
    thread.start()
    try:
        with pytest.raises(Cancelled):
            tries(transport, target)
    finally:
        ended.set()
        thread.join()
    assert landed(target) == {b"old": b"old"}


@pytest.mark.parametrize("make", ["link", "fifo", "directory", "hard link", "gone", "foreign"])
def test_a_child_that_fills_the_workspace_with_traps_gets_nothing_read(
    puppet: Puppet, target: Path, tmp_path: Path, make: str
) -> None:
    """What it names is looked at by root: see also test_rcp_apart.py, where another user makes it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    traps: dict[str, Callable[[str], object]] = {
        "link": lambda place: os.symlink(secret, f"{place}/a"),
        "fifo": lambda place: os.mkfifo(f"{place}/a"),
        "directory": lambda place: os.mkdir(f"{place}/a"),
        "hard link": lambda place: os.link(secret, f"{place}/a"),
        "gone": lambda place: None,
        "foreign": lambda place: (Path(f"{place}/a").write_bytes(b"x"), os.chown(f"{place}/a", 1234, 1234)),
    }
    transport = puppet.transport(wire(Adopt(b"a"), Result(DONE)), by_command=True)
    real = transport._started

    def set_trap(clock: Any) -> Child:
        (place,) = target.glob(".peerstage-*/workspace")
        traps[make](str(place))
        return real(clock)

    transport._started = set_trap  # type: ignore[method-assign]
    with pytest.raises(IncompleteStage, match="no regular file"):
        tries(transport, target)
    assert landed(target) == {b"old": b"old"}
    assert secret.read_bytes() == b"secret"


def test_a_frame_of_the_largest_size_is_taken(puppet: Puppet, target: Path) -> None:
    body = os.urandom(4 << 20)
    assert tries(puppet.transport(wire(opened(b"a", len(body)), data(0, 0, body), Finish(0), Result(DONE))), target)
    assert (target / "a").read_bytes() == body
