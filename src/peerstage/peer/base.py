"""`BackupPeer`: what a master does with a peer, whatever kind it is, and the checks that all kinds share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from peerstage.documented import DocumentedABC
from peerstage.peer.attributes import Checked, failure_mode, peer_name
from peerstage.records import Ownership, StrOrBytesPath

if TYPE_CHECKING:
    from peerstage.records import StageReport

#: The indicator that a peer leaves when it has collected, and the one that it finds when it was staged.
COLLECT_INDICATOR = "cback.collect"
STAGE_INDICATOR = "cback.stage"


class BackupPeer(metaclass=DocumentedABC):
    """A machine, or a directory of this one, whose collected files a master stages.

    Only `ValueError` (arguments) and `OSError` (everything else) leave these methods.

    Attributes:
        last_report: What the last `stagePeer` did, None before the first and after one that published nothing.
    """

    name = Checked(peer_name)
    ignoreFailureMode = Checked(failure_mode)

    last_report: StageReport | None = None

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
