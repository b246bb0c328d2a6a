"""Our log in cback3's: what peerstage says goes to the loggers that cback3 has set up, peer by peer in their order."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence

#: cback3 lets its files and its screen have what is said below this logger.
CBACK_LOGGER = "CedarBackup3.log"

#: Lines of one peer that are kept until its turn has come.
_KEPT = 1000


class _Lane:
    """What is said of one peer."""

    def __init__(self) -> None:
        self.waiting: deque[logging.LogRecord] = deque(maxlen=_KEPT)
        self.most = logging.CRITICAL
        self.done = False


class CbackLog(logging.Handler):
    """Hands records on to cback3's logger.

    Peers may be staged at the same time: then what is said of one waits until those before it are done.

    Args:
        peers: Their names, in the order of the log.
    """

    def __init__(self, peers: Sequence[str]) -> None:
        super().__init__()
        self._lanes = {name: _Lane() for name in peers}
        self._turns = deque(peers)
        self._threads: dict[int, _Lane] = {}

    @contextlib.contextmanager
    def speaking_of(self, peer: str) -> Iterator[None]:
        """Take what this thread says inside as said of *peer*."""
        lane = self._threads[threading.get_ident()] = self._lanes[peer]
        try:
            yield
        finally:
            del self._threads[threading.get_ident()]
            with self.lock or contextlib.nullcontext():
                lane.done = True
                self._let_through()

    @contextlib.contextmanager
    def quietly(self, peer: str, quiet: bool) -> Iterator[None]:
        """If *quiet*, pass nothing that is said of *peer* inside as more than information."""
        lane = self._lanes[peer]
        lane.most = logging.INFO if quiet else logging.CRITICAL
        try:
            yield
        finally:
            lane.most = logging.CRITICAL

    def emit(self, record: logging.LogRecord) -> None:
        """Hand *record* on, or keep it until its peer's turn has come; what cback3 does not want takes no room."""
        if not logging.getLogger(f"{CBACK_LOGGER}.{record.name}").isEnabledFor(record.levelno):
            return
        lane = self._threads.get(record.thread or 0)
        if lane is None:
            _hand_on(record)
            return
        if record.levelno > lane.most:
            record = logging.makeLogRecord({**record.__dict__, "levelno": lane.most})
            record.levelname = logging.getLevelName(lane.most)
        lane.waiting.append(record)
        self._let_through()

    def _let_through(self) -> None:
        while self._turns:
            lane = self._lanes[self._turns[0]]
            while lane.waiting:
                _hand_on(lane.waiting.popleft())
            if not lane.done:
                return
            self._turns.popleft()


@contextlib.contextmanager
def logging_to_cback(peers: Sequence[str]) -> Iterator[CbackLog]:
    """Let cback3's log have what peerstage says inside, and nobody else."""
    ours = logging.getLogger("peerstage")
    handler, before = CbackLog(peers), (ours.level, ours.propagate)
    ours.addHandler(handler)
    ours.propagate = False
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.DEBUG)  # which of it is kept is cback3's to decide
    try:
        yield handler
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]


def _hand_on(record: logging.LogRecord) -> None:
    logger = logging.getLogger(f"{CBACK_LOGGER}.{record.name}")
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
