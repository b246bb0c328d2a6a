"""Pass peerstage's log records to cback3's loggers, grouped by peer in the order of the configuration."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence

#: The logger whose records cback3 writes to its log file and the screen.
CBACK_LOGGER = "CedarBackup3.log"

#: Records of one peer that are queued until its turn; older ones are dropped.
_MAX_QUEUED = 1000


class _PeerQueue:
    """The log records of one peer."""

    def __init__(self) -> None:
        self.records: deque[logging.LogRecord] = deque(maxlen=_MAX_QUEUED)
        self.max_level = logging.CRITICAL
        self.is_done = False


class CbackLogHandler(logging.Handler):
    """Passes records on to cback3's logger.

    If several peers are staged at a time, the records of one are queued until the peers before it are done.

    Args:
        peers: The names of the peers, in the order of the log.
    """

    def __init__(self, peers: Sequence[str]) -> None:
        super().__init__()
        self._queues = {name: _PeerQueue() for name in peers}
        self._order = deque(peers)
        self._queue_by_thread: dict[int, _PeerQueue] = {}

    @contextlib.contextmanager
    def in_turn(self, peer: str) -> Iterator[None]:
        """In the block, treat what this thread logs as records of *peer*."""
        queue = self._queue_by_thread[threading.get_ident()] = self._queues[peer]
        try:
            yield
        finally:
            del self._queue_by_thread[threading.get_ident()]
            with self.lock or contextlib.nullcontext():
                queue.is_done = True
                self._flush_in_order()

    @contextlib.contextmanager
    def limited_to(self, level: int, peer: str) -> Iterator[None]:
        """In the block, log records of *peer* at *level* at most."""
        queue = self._queues[peer]
        queue.max_level = level
        try:
            yield
        finally:
            queue.max_level = logging.CRITICAL

    def emit(self, record: logging.LogRecord) -> None:
        """Pass *record* on, or queue it until its peer's turn; drop it if cback3 does not log its level."""
        if not logging.getLogger(f"{CBACK_LOGGER}.{record.name}").isEnabledFor(record.levelno):
            return
        queue = self._queue_by_thread.get(record.thread or 0)
        if queue is None:
            _pass_on(record)
            return
        if record.levelno > queue.max_level:
            record = logging.makeLogRecord({**record.__dict__, "levelno": queue.max_level})
            record.levelname = logging.getLevelName(queue.max_level)
        queue.records.append(record)
        self._flush_in_order()

    def _flush_in_order(self) -> None:
        while self._order:
            queue = self._queues[self._order[0]]
            while queue.records:
                _pass_on(queue.records.popleft())
            if not queue.is_done:
                return
            self._order.popleft()


@contextlib.contextmanager
def log_to_cback(peers: Sequence[str]) -> Iterator[CbackLogHandler]:
    """In the block, send what peerstage logs to cback3's log only."""
    logger = logging.getLogger("peerstage")
    handler, level, propagate = CbackLogHandler(peers), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.DEBUG)  # cback3 decides which levels to keep
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _pass_on(record: logging.LogRecord) -> None:
    logger = logging.getLogger(f"{CBACK_LOGGER}.{record.name}")
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
