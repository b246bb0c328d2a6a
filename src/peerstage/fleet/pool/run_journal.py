"""The journal of a run that is under way: ``RUN.jsonl`` in the pool's runs directory, one JSON object per line.

The first line says what the run is going to do; each further one is a peer that was started, or its result. A line is
passed to the kernel at once, so that a killed run loses none. It reaches the disk with the next peer's commit, which
syncs the whole file system. The last line of a journal may be torn.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peerstage.bounded_files import read_at_most
from peerstage.errors import TargetError, format_log_line
from peerstage.fleet.pool.run_lock import is_locked
from peerstage.fleet.pool.runs_directory import JOURNAL, RunsDirectory
from peerstage.fleet.results import FleetReport, PeerResult
from peerstage.forks import release_after_fork
from peerstage.records import MIB
from peerstage.target.durability import sync_directory
from peerstage.target.file_descriptors import (
    CREATE_NEW,
    NO_FOLLOW,
    READ_WITHOUT_WAITING,
    close_quietly,
    closing,
)

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger("peerstage.fleet")

#: Bytes of a journal that are read; what follows counts as torn.
_MAX_BYTES = 64 * MIB
#: Characters of a text in a line, and items of a list in it: of peers that fail in many words, the beginning will do.
_MAX_CHARS = 4096
_MAX_ITEMS = 100


class RunJournal:
    """The journal of a run, open for writing. All methods are thread-safe.

    A full disk does not end the run: that is logged once, and the lines are kept, and written with a later one. They
    are lost only if the run is killed before that, since its record has them, too. A record that cannot be written at
    the end is an error of the run.

    Args:
        runs: The pool's runs directory. The caller holds the pool's lock.
        report: What is known of the run when it starts; its results are not used.
        peers: The names of the selected peers, in the plan's order.

    Attributes:
        error: Why lines are waiting to be written; None if none are.

    Raises:
        TargetError: If the journal cannot be created.
    """

    def __init__(self, runs: RunsDirectory, report: FleetReport, peers: Sequence[str]) -> None:
        self.error: TargetError | None = None
        self._runs = runs
        self._name = report.run + JOURNAL
        self._writing = threading.Lock()
        head = report.to_dict()
        del head["results"]
        self._waiting = encode_line({**head, "peers": list(peers)})
        with runs.errors("The run's journal cannot be created"):
            self._fd = os.open(self._name, CREATE_NEW, 0o600, dir_fd=runs.fd)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)  # shows that the run is alive; readers hold it for an instant only
                self._write()
                os.fsync(self._fd)
                sync_directory(runs.fd)
            except BaseException:
                self.close()
                with contextlib.suppress(OSError):
                    runs.remove(self._name)
                raise
        release_after_fork(self)

    def add_started(self, peer: str) -> None:
        """Write that *peer* is being asked."""
        self._add({"started": peer})

    def add_result(self, result: PeerResult) -> None:
        """Write the result of a peer."""
        self._add({"result": shorten(result.to_dict())})

    def close(self) -> None:
        """Close the journal. Without a record, the next run makes one of it."""
        with self._writing:
            self._close()

    def release_in_child(self) -> None:
        """Close the copy of the descriptor in a forked child."""
        self._writing = threading.Lock()  # another thread of the parent may hold the old one
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        close_quietly(fd)

    def _add(self, value: dict[str, Any]) -> None:
        with self._writing:
            self._waiting += encode_line(value)
            if self._fd < 0:
                return
            try:
                with self._runs.errors("The run's journal cannot be written"):
                    self._write()
                self.error = None
            except TargetError as exc:
                if self.error is None:
                    _log.warning("%s The run continues, and its record will be complete.", format_log_line(exc))
                self.error = exc

    def _write(self) -> None:
        """Write the waiting lines; a line that was written in part is continued by the next call."""
        while self._waiting:
            self._waiting = self._waiting[os.write(self._fd, self._waiting) :]


@dataclass(slots=True)
class JournalContent:
    """What a journal says.

    Attributes:
        head: The values of the first line, but for the peers.
        peers: The selected peers.
        started: Those that were started.
        results: The results, by peer.
        ended: When the last line was written, in seconds since the epoch.
    """

    head: dict[str, Any]
    peers: list[str]
    started: set[str] = field(default_factory=set)
    results: dict[str, PeerResult] = field(default_factory=dict)
    ended: float = 0.0


def read_journal(runs: RunsDirectory, run: str) -> JournalContent | None:
    """Return what the journal of a run that was killed says; None if the run is alive, or wrote no complete line.

    Damaged lines but the first are ignored.

    Args:
        runs: The runs directory.
        run: The run's id.

    Raises:
        ValueError: If it is not a journal.
        OSError: If it cannot be read.
    """
    with closing(os.open(run + JOURNAL, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=runs.fd)) as fd:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if is_locked(fd, runs):
            return None
        content = _parse_journal(read_at_most(fd, _MAX_BYTES))
    if content is not None:
        content.ended = found.st_mtime
    return content


def _parse_journal(data: bytes) -> JournalContent | None:
    lines = data.split(b"\n")[:-1]  # what follows the last newline was torn
    if not lines:
        return None
    head = decode_line(lines[0])
    peers = head.pop("peers", None)
    if not isinstance(peers, list) or not all(isinstance(peer, str) for peer in peers):
        raise ValueError("its first line does not name the peers")
    content = JournalContent(head, peers)
    for line in lines[1:]:
        with contextlib.suppress(ValueError):
            value = decode_line(line)
            if isinstance(value.get("started"), str):
                content.started.add(value["started"])
            elif isinstance(value.get("result"), dict):
                result = PeerResult.from_dict(value["result"])
                content.results[result.peer] = result
    return content


def shorten(value: Any) -> Any:
    """Return *value*, of which `json` can encode everything, with long texts and lists cut off."""
    if isinstance(value, str):
        return value[:_MAX_CHARS]
    if isinstance(value, dict):
        return {key: shorten(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shorten(item) for item in value[:_MAX_ITEMS]]
    return value


def encode_line(value: dict[str, Any]) -> bytes:
    """Return *value* as a line of JSON."""
    return json.dumps(value).encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the object in a line of JSON.

    Raises:
        ValueError: If there is something else in it.
    """
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
