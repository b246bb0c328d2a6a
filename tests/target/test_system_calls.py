"""Each system call of the local side fails once: a `StageError` is raised, and no file is incomplete."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from target_cases import NOBODY, FailsAt

import peerstage.target
from peerstage import LocalPeer, StageError
from peerstage.records import Entry, Ownership
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in

pytestmark = pytest.mark.usefixtures("patience")

OURS = Ownership(os.getuid(), os.getgid())
#: The owner of a workspace whose files are copied.
OTHER = Ownership(NOBODY, NOBODY) if os.geteuid() == 0 else OURS
OLD, NEW = b"old", b"new content"


def calls_in_the_source() -> list[str]:
    """Return the functions of ``os`` that the target and the local transport call and that can fail."""
    root = Path(peerstage.target.__file__).parent
    text = "".join(path.read_text() for path in [*root.glob("*.py"), root.parent / "transport" / "local.py"])
    harmless = {"fsdecode", "fsencode", "fspath", "getpid", "geteuid", "umask", "strerror", "uname"}
    return sorted(set(re.findall(r"\bos\.([a-z_]+)\(", text)) - harmless)


def stage_locally(collect: Path, target: Path) -> None:
    LocalPeer("here", str(collect)).stagePeer(str(target), OURS, 0o640)


def write_local_indicator(collect: Path, target: Path) -> None:
    LocalPeer("here", str(target)).writeStageIndicator("a", OURS, 0o640)


def check_local_indicator(collect: Path, target: Path) -> None:
    LocalPeer("here", str(collect)).checkCollectIndicator("a")


def read_local_indicators(collect: Path, target: Path) -> None:
    LocalPeer("here", str(collect)).readIndicators("a", "b")


def write_partial_files(collect: Path, target: Path) -> None:
    with DirectoryTarget(str(target), options=StageOptions(preserve_times=True)) as staging_target:
        entries = [Entry(name, len(NEW), 0o644, 1) for name in (b"a", b"b")]
        staging_target.admit(entries)[0].write(0, [NEW[:4]])
        for incoming in staging_target.admit(entries):
            for start, end in incoming.missing():
                incoming.write(start, [NEW[start:end]])
            incoming.finish()
        staging_target.commit()


def import_by_moving(collect: Path, target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        for _ in range(2):
            workspace = Path(staging_target.create_workspace())
            for name in ("a", "b"):
                (workspace / name).write_bytes(NEW)
        for name in (b"a", b"b"):
            staging_target.import_file(name)
        staging_target.commit()


def import_by_copying(collect: Path, target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        workspace_fd = staging_target.create_workspace_for(OTHER)
        for name in ("a", "b"):
            path = Path(f"/proc/self/fd/{workspace_fd}") / name
            path.write_bytes(NEW)
            os.chown(path, *OTHER)
        with pytest.MonkeyPatch.context() as patch:
            if os.geteuid() != 0:  # who is the only owner of files then
                patch.setattr(os, "geteuid", lambda: -1)
            for name in (b"a", b"b"):
                staging_target.import_file(name)
        staging_target.commit()


FLOWS = [
    stage_locally,
    write_local_indicator,
    check_local_indicator,
    read_local_indicators,
    write_partial_files,
    import_by_moving,
    import_by_copying,
]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.usefixtures("leaves_nothing")
def test_any_failing_system_call_raises_an_error_of_ours(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, flow: Callable[[Path, Path], None], code: int
) -> None:
    for name in ("a", "b"):
        (collect / name).write_bytes(NEW)
    reached = set()
    for module, name in [(os, name) for name in calls_in_the_source()] + [(fcntl, "flock")]:
        for number in range(1, 200):
            (target / "a").write_bytes(OLD)
            fails = FailsAt(getattr(module, name), code, number=number, takes_effect=name == "close")
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fails)
                try:
                    flow(collect, target)
                except (
                    StageError,
                    ValueError,
                ) as exc:  # isdir() returns False for a directory whose attributes cannot be read
                    assert "\n" not in str(exc)
                except OSError as exc:
                    raise AssertionError(f"{name}, call {number}: a bare {exc!r}") from exc
            if fails.calls < number:
                break
            reached.add(name)
            contents: dict[bytes, Any] = {n: d for n, d in files_in(target).items() if not n.startswith(b".")}
            assert contents.get(b"a", OLD) in (OLD, NEW, b""), (name, number)
            assert contents.get(b"b", NEW) == NEW, (name, number)
            peerstage.sweep(target)
            assert set(os.listdir(target)) <= {"a", "b"}, (name, number)
            (target / "b").unlink(missing_ok=True)
    assert reached
