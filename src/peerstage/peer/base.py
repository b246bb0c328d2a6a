"""`BackupPeer`: what a master does with a peer, whatever kind it is, and the checks that all kinds share."""

from __future__ import annotations

import copy
import functools
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from peerstage.documented import DocumentedABC
from peerstage.errors import Cancelled, ConnectError, ConnectionLost, LimitExceeded, RemoteError, StageError, log_line
from peerstage.peer.attributes import Checked, failure_mode, peer_name
from peerstage.records import Ownership, StrOrBytesPath

if TYPE_CHECKING:
    from peerstage.records import StageReport

P = ParamSpec("P")
R = TypeVar("R")
Peer = TypeVar("Peer", bound="BackupPeer")

log = logging.getLogger("peerstage.peer")

#: The indicator that a peer leaves when it has collected, and the one that it finds when it was staged.
COLLECT_INDICATOR = "cback.collect"
STAGE_INDICATOR = "cback.stage"
#: Failures of a check that may be gone at the next try, or that the peer's own administrator can see to.
_NOT_REACHED = (ConnectError, ConnectionLost, LimitExceeded, RemoteError)


class BackupPeer(metaclass=DocumentedABC):
    """A machine, or a directory of this one, whose collected files a master stages.

    Only `ValueError` (arguments) and `OSError` (everything else) leave these methods.

    Attributes:
        last_report: What the last `stagePeer` did, None before the first and after one that published nothing.
        last_error: Why the last `stagePeer`, `checkCollectIndicator` or `writeStageIndicator` failed; None if it did
            not, so that a check that was False with no error here has found a peer that is not ready. It is a copy of
            what was raised, without the traceback, which would keep what the call had in memory.
    """

    name = Checked(peer_name)
    ignoreFailureMode = Checked(failure_mode)

    last_report: StageReport | None = None
    last_error: StageError | None = None

    @abstractmethod
    def stagePeer(
        self, targetDir: StrOrBytesPath, ownership: tuple[int, int] | None = None, permissions: int | None = None
    ) -> int:
        """Stage the peer's files into *targetDir*; return how many."""

    @abstractmethod
    def checkCollectIndicator(self, collectIndicator: StrOrBytesPath | None = None) -> bool:
        """Whether the peer says that it has finished collecting."""

    @abstractmethod
    def writeStageIndicator(
        self,
        stageIndicator: StrOrBytesPath | None = None,
        ownership: tuple[int, int] | None = None,
        permissions: int | None = None,
    ) -> None:
        """Tell the peer that it was staged."""

    @abstractmethod
    def cancel(self) -> None:
        """End the operation that another thread has under way on this peer."""

    def _not_checked(self, error: StageError, *, hides_login: bool = False) -> bool:
        """Return False for a check that failed; note *error*, and log it as urgently as it is.

        Args:
            error: Why it failed.
            hides_login: Whether a refused login looks no different.
        """
        self.last_error = copy.copy(error)
        if isinstance(error, Cancelled):
            level = logging.INFO
        else:
            level = logging.WARNING if isinstance(error, _NOT_REACHED) and not hides_login else logging.ERROR
        log.log(level, "%s", log_line(error))
        return False


def noting_error(method: Callable[Concatenate[Peer, P], R]) -> Callable[Concatenate[Peer, P], R]:
    """Have *method* begin with no `last_error`, and leave there a copy of the `StageError` that it raises."""

    @functools.wraps(method)
    def noting(self: Peer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.last_error = None
        try:
            return method(self, *args, **kwargs)
        except StageError as exc:
            self.last_error = copy.copy(exc)
            raise

    return noting


def ownership_of(value: Any) -> Ownership | None:
    """Return *value* as numeric owner and group; None passes.

    Raises:
        ValueError: It is not a pair of ids, -1 for "as it is".
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
