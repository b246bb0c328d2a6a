"""Every system call of the local side fails once: an error of ours leaves, and nothing is half there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from landing_cases import FailsAt

import peerstage.landing
from peerstage import LocalPeer, StageError
from peerstage.landing import DirectoryLanding
from peerstage.records import Entry, Ownership
from peerstage.testing.contract import landed

pytestmark = pytest.mark.usefixtures("patience")

OURS = Ownership(os.getuid(), os.getgid())
OLD, NEW = b"old", b"new content"


def calls_in_the_source() -> list[str]:
    """The functions of ``os`` that the landing and the local transport call, and that a system can let fail."""
    root = Path(peerstage.landing.__file__).parent
    text = "".join(path.read_text() for path in [*root.glob("*.py"), root.parent / "transport" / "local.py"])
    harmless = {"fsdecode", "fsencode", "fspath", "getpid", "geteuid", "umask", "strerror", "uname"}
    return sorted(set(re.findall(r"\bos\.([a-z_]+)\(", text)) - harmless)


def stage_locally(collect: Path, target: Path) -> None:
    LocalPeer("here", str(collect)).stagePeer(str(target), OURS, 0o640)


def write_local_indicator(collect: Path, target: Path) -> None:
    LocalPeer("here", str(target)).writeStageIndicator("a", OURS, 0o640)


def check_local_indicator(collect: Path, target: Path) -> None:
    LocalPeer("here", str(collect)).checkCollectIndicator("a")


def land_slots(collect: Path, target: Path) -> None:
    with DirectoryLanding(str(target), preserve_times=True) as landing:
        entries = [Entry(name, len(NEW), 0o644, 1) for name in (b"a", b"b")]
        landing.expect(2, 2 * len(NEW))
        landing.open(entries[0]).write(0, [NEW[:4]])
        for entry in entries:
            slot = landing.open(entry)
            for start, end in slot.missing():
                slot.write(start, [NEW[start:end]])
            slot.finish()
        landing.commit()


def adopt_moved(collect: Path, target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        for _ in range(2):
            place = Path(landing.workspace())
            for name in ("a", "b"):
                (place / name).write_bytes(NEW)
        for name in (b"a", b"b"):
            landing.adopt(name)
        landing.commit()


def adopt_copied(collect: Path, target: Path) -> None:
    with DirectoryLanding(str(target), ownership=Ownership(OURS.uid + 1, -1)) as landing:
        landing.ownership = None  # nobody but root gives files away
        place = landing.hand_over(Ownership(*OURS))
        landing._workspace_owner = OURS.uid
        landing.ownership = Ownership(-1, -1)
        for name in ("a", "b"):
            (Path(f"/proc/self/fd/{place}") / name).write_bytes(NEW)
        for name in (b"a", b"b"):
            landing.adopt(name)
        landing.commit()


FLOWS = [stage_locally, write_local_indicator, check_local_indicator, land_slots, adopt_moved, adopt_copied]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.usefixtures("leaves_nothing")
def test_whichever_system_call_fails_what_leaves_is_an_error_of_ours(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, flow: Callable[[Path, Path], None], code: int
) -> None:
    for name in ("a", "b"):
        (collect / name).write_bytes(NEW)
    reached = set()
    for module, name in [(os, name) for name in calls_in_the_source()] + [(fcntl, "flock")]:
        for number in range(1, 200):
            (target / "a").write_bytes(OLD)
            fails = FailsAt(getattr(module, name), code, number=number, does_it=name == "close")
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fails)
                try:
                    flow(collect, target)
                except (
                    StageError,
                    ValueError,
                ) as exc:  # isdir() says of a directory that cannot be looked at: it is none
                    assert "\n" not in str(exc)
                except OSError as exc:
                    raise AssertionError(f"{name}, call {number}: a bare {exc!r}") from exc
            if fails.calls < number:
                break
            reached.add(name)
            contents: dict[bytes, Any] = {n: d for n, d in landed(target).items() if not n.startswith(b".")}
            assert contents.get(b"a", OLD) in (OLD, NEW, b""), (name, number)
            assert contents.get(b"b", NEW) == NEW, (name, number)
            peerstage.sweep(target)
            assert set(os.listdir(target)) <= {"a", "b"}, (name, number)
            (target / "b").unlink(missing_ok=True)
    assert reached
