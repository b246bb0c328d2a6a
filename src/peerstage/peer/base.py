"""`BackupPeer`: the interface of local and remote peers."""

from __future__ import annotations

import copy
import functools
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from peerstage.documented import DocumentedABC
from peerstage.errors import (
    Cancelled,
    ConnectError,
    ConnectionLost,
    LimitExceeded,
    RemoteError,
    StageError,
    format_log_line,
)
from peerstage.peer.attributes import Checked, options_validator, validate_failure_mode, validate_peer_name
from peerstage.printable import escape
from peerstage.records import Indicators, Limits, Ownership, StageReport, StrOrBytesPath
from peerstage.stage_options import StageOptions

P = ParamSpec("P")
R = TypeVar("R")
PeerT = TypeVar("PeerT", bound="BackupPeer")

log = logging.getLogger("peerstage.peer")

#: Failures of a check that may be temporary, or that the peer's administrator must fix: logged at WARNING.
_PEER_FAILURES = (ConnectError, ConnectionLost, LimitExceeded, RemoteError)


class BackupPeer(metaclass=DocumentedABC):
    """A peer whose collected files the master stages: another machine, or a directory of this one.

    The methods raise only `ValueError` for wrong arguments and `OSError` for everything else.

    Attributes:
        last_report: The report of the last `stagePeer`; None before the first one, and after an error that carries
            none.
        last_error: The error of the last `stagePeer`, `checkCollectIndicator`, `readIndicators` or
            `writeStageIndicator`; None if there was none. If a check returns False and this is None, the peer has not
            finished collecting. The error is a copy without its traceback, which would keep the objects of the call in
            memory.
        on_commit: Called without arguments once in each `stagePeer`, when all data is on the disk and before the first
            file gets its final name, in the thread that called it. If it raises, the run ends and nothing is published:
            a `StageError` is raised as it is, another OSError as the cause of one, any other error as it is. None, the
            default, calls nothing. It is not pickled with the peer.
    """

    name = Checked(validate_peer_name)
    ignoreFailureMode = Checked(validate_failure_mode)
    stage = Checked(options_validator("stage", StageOptions))
    limits = Checked(options_validator("limits", Limits))

    last_report: StageReport | None = None
    last_error: StageError | None = None
    on_commit: Callable[[], object] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "on_commit"}

    @abstractmethod
    def stagePeer(
        self, targetDir: StrOrBytesPath, ownership: tuple[int, int] | None = None, permissions: int | None = None
    ) -> int:
        """Stage the peer's files into *targetDir* and return their number."""

    @abstractmethod
    def checkCollectIndicator(self, collectIndicator: StrOrBytesPath | None = None) -> bool:
        """Return whether the peer has finished collecting."""

    @abstractmethod
    def readIndicators(
        self, collectIndicator: StrOrBytesPath | None = None, stageIndicator: StrOrBytesPath | None = None
    ) -> Indicators:
        """Return the indicators, which tell whether the peer has collected, and whether it has been staged since."""

    @abstractmethod
    def writeStageIndicator(
        self,
        stageIndicator: StrOrBytesPath | None = None,
        ownership: tuple[int, int] | None = None,
        permissions: int | None = None,
    ) -> None:
        """Tell the peer that its files were staged."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel an operation that is running in another thread."""

    def _report_check(self, found: bool, path: bytes) -> bool:
        """Return *found*; log at INFO that there is no indicator at *path* if it is false."""
        if not found:
            log.info("%s: %s does not exist yet.", escape(self.name), escape(path))
        return found

    def _report_failed_check(self, error: StageError, *, may_be_login: bool = False) -> bool:
        """Return False for a check that failed with *error*; keep the error, and log it at a level for its urgency.

        Args:
            error: Why the check failed.
            may_be_login: Whether a refused login would raise the same error.
        """
        self.last_error = copy.copy(error)
        if isinstance(error, Cancelled):
            level = logging.INFO
        else:
            level = logging.WARNING if isinstance(error, _PEER_FAILURES) and not may_be_login else logging.ERROR
        log.log(level, "%s", format_log_line(error))
        return False


def records_last_error(method: Callable[Concatenate[PeerT, P], R]) -> Callable[Concatenate[PeerT, P], R]:
    """Decorate *method* to clear `last_error` first, and to keep a copy of a `StageError` that it raises in it."""

    @functools.wraps(method)
    def wrapper(self: PeerT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.last_error = None
        try:
            return method(self, *args, **kwargs)
        except StageError as exc:
            self.last_error = copy.copy(exc)
            raise

    return wrapper


def validate_ownership(value: Any) -> Ownership | None:
    """Return *value*, a pair of numeric ids, as an `Ownership`; None passes.

    Raises:
        ValueError: If it is not a pair of ids from -1 (leave unchanged) on.
    """
    if value is None:
        return None
    try:
        uid, gid = value
    except (TypeError, ValueError):
        raise ValueError(f"Ownership must be a pair of numeric ids: {value!r}") from None
    for number in (uid, gid):
        if isinstance(number, bool) or not isinstance(number, int) or not -1 <= number < 2**32 - 1:
            raise ValueError(f"Ownership must be a pair of numeric ids: {value!r}")
    return Ownership(uid, gid)
