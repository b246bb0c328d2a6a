"""`on_commit`: called once before anything is published, and able to keep it from being published."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import LocalPeer, Reason, StageError, StageOptions
from peerstage.errors import Cancelled, IncompleteStage, NothingToStage
from peerstage.peer.base import BackupPeer
from peerstage.testing import memory_peer
from peerstage.testing.contract import files_in

FILES = {b"a": b"new a", b"b": b"new b"}


@pytest.fixture(params=["memory", "local"])
def peer(request: pytest.FixtureRequest, collect: Path) -> BackupPeer:
    """A peer with `FILES`."""
    if request.param == "memory":
        return memory_peer(FILES, stage=StageOptions(manifest=True))
    for name, data in FILES.items():
        (collect / os.fsdecode(name)).write_bytes(data)
    return LocalPeer("here", collect, stage=StageOptions(manifest=True))


def test_it_is_called_once_when_all_has_arrived_and_nothing_is_published(peer: BackupPeer, target: Path) -> None:
    (target / "a").write_bytes(b"old a")
    seen: list[tuple[set[bytes], set[bytes]]] = []

    def look() -> None:
        [private] = target.glob(".peerstage-*")
        seen.append((set(files_in(target)), set(files_in(private).values())))

    peer.on_commit = look
    assert peer.stagePeer(target) == 2
    [(published, private_contents)] = seen
    assert {name for name in published if not name.startswith(b".")} == {b"a"}
    assert private_contents >= set(FILES.values())
    assert files_in(target).items() >= FILES.items()


def raise_cancelled() -> None:
    raise Cancelled("This run was stopped.")


def raise_os_error() -> None:
    raise PermissionError(13, "Permission denied", "/pool/lock")


def raise_value_error() -> None:
    raise ValueError("A bug.")


def raise_interrupt() -> None:
    raise KeyboardInterrupt("Ctrl-C")


@pytest.mark.parametrize(
    ("on_commit", "expected", "message"),
    [
        (raise_cancelled, Cancelled, "This run was stopped."),
        (raise_os_error, StageError, "/pool/lock"),
        (raise_value_error, ValueError, "A bug."),
        (raise_interrupt, KeyboardInterrupt, "Ctrl-C"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_if_it_raises_nothing_is_published_and_nothing_is_left(
    peer: BackupPeer, target: Path, on_commit: Callable[[], object], expected: type[BaseException], message: str
) -> None:
    (target / "a").write_bytes(b"old a")
    peer.on_commit = on_commit
    with pytest.raises(expected, match=message) as caught:
        peer.stagePeer(target)
    assert files_in(target) == {b"a": b"old a"}
    assert peer.last_report is None
    if isinstance(caught.value, StageError):
        assert caught.value.peer == peer.name
        assert str(peer.last_error) == str(caught.value)


def test_an_os_error_that_it_raises_is_the_cause_and_is_not_about_the_target(peer: BackupPeer, target: Path) -> None:
    peer.on_commit = raise_os_error
    with pytest.raises(StageError) as caught:
        peer.stagePeer(target)
    assert isinstance(caught.value.__cause__, PermissionError)
    assert str(target) not in str(caught.value)


def test_a_run_that_is_cancelled_while_it_is_called_publishes_nothing(peer: BackupPeer, target: Path) -> None:
    peer.on_commit = peer.cancel
    with pytest.raises(Cancelled):
        peer.stagePeer(target)
    assert files_in(target) == {}


def test_it_is_called_once_if_the_connection_was_lost_and_the_transfer_resumed(target: Path) -> None:
    calls: list[None] = []
    peer = memory_peer(FILES, lose_after=1, faulty_connections=1)
    peer.on_commit = lambda: calls.append(None)
    assert peer.stagePeer(target) == 2
    assert peer.host.connection_count == 2
    assert len(calls) == 1


def test_it_is_called_before_the_good_files_of_an_incomplete_stage_are_published(collect: Path, target: Path) -> None:
    (collect / "good").write_bytes(b"good")
    (collect / "sub").mkdir()
    peer = LocalPeer("here", collect)
    peer.on_commit = raise_cancelled
    with pytest.raises(Cancelled):
        peer.stagePeer(target)
    assert files_in(target) == {}
    peer.on_commit = None
    with pytest.raises(IncompleteStage):
        peer.stagePeer(target)
    assert files_in(target) == {b"good": b"good"}


def test_it_can_stop_a_run_that_would_find_nothing(target: Path) -> None:
    peer = memory_peer()
    with pytest.raises(NothingToStage):
        peer.stagePeer(target)
    peer.on_commit = raise_cancelled
    with pytest.raises(Cancelled):
        peer.stagePeer(target)


def test_it_is_not_pickled_with_the_peer(peer: BackupPeer, target: Path) -> None:
    peer.on_commit = lambda: None  # no lambda can be pickled
    copy = pickle.loads(pickle.dumps(peer))
    assert copy.on_commit is None
    assert (copy.name, copy.stage) == (peer.name, peer.stage)
    assert peer.on_commit is not None


def test_reason_of_an_error_that_it_raises_is_kept(peer: BackupPeer, target: Path) -> None:
    def refuse() -> None:
        raise StageError("Another run stages this peer now.", reason=Reason.IN_USE)

    peer.on_commit = refuse
    with pytest.raises(StageError) as caught:
        peer.stagePeer(target)
    assert caught.value.reason is Reason.IN_USE
