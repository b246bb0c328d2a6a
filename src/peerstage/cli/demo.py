"""``peerstage demo``: stage real files from an SSH server that it starts, and compare them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from peerstage.cli.options import option
from peerstage.cli.output import Output
from peerstage.cli.results import Line, Note, Part, Result, Table, describe_entry_failure, format_rate
from peerstage.cli.signals import cancel_on_signal
from peerstage.errors import IncompleteStage
from peerstage.exit_codes import ExitCode
from peerstage.paths import COLLECT_INDICATOR, STAGE_INDICATOR, validate_target_directory
from peerstage.peer.remote import RemotePeer
from peerstage.printable import escape
from peerstage.records import StageReport
from peerstage.target.private_directory import require_posix
from peerstage.testing.sample import hash_files, make_sample

_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult(Result):
    """The result of ``demo``.

    Attributes:
        source: The directory that was served.
        target: The directory of the staged files.
        kept: Whether the target still exists.
        report: What was staged.
        compared: The number of files whose SHA-256 was compared.
        different: The names of files that differ or are missing.
        left_out: Steps that were left out, each with the reason.
    """

    source: str
    target: str
    kept: bool
    report: StageReport
    compared: int
    different: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def equal(self) -> int:
        """The number of files with the SHA-256 of the original."""
        return self.compared - len(self.different)

    @property
    def exit(self) -> ExitCode:
        """The exit code: whether every file is equal."""
        return ExitCode.INCOMPLETE if self.different else ExitCode.DONE

    def to_json(self) -> list[dict[str, Any]]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        report = json.loads(self.report.to_json())
        return [{"verb": "demo", **fields, "equal": self.equal, "exit": self.exit, "report": report}]

    def to_lines(self) -> Iterator[Line]:
        for label, value in self._rows():
            yield f"{label}: ", value

    def to_terminal(self) -> Iterator[Line | Table]:
        yield Table("demo", (((label, "dim"), value) for label, value in self._rows()))

    def _rows(self) -> Iterator[tuple[str, Part]]:
        report = self.report
        yield "files", str(report.count)
        yield "bytes", str(report.bytes)
        yield "seconds", f"{report.seconds:.2f}"
        yield "MB/s", format_rate(report)
        yield "SHA-256", (f"{self.equal} of {self.compared} equal", f"bold {'red' if self.different else 'green'}")
        for name in self.different:
            yield "different", escape(name)
        for file in report.failed:
            yield "not staged", describe_entry_failure(file)
        for step in self.left_out:
            yield "left out", step
        yield "staged in", escape(self.target) + ("" if self.kept else " (removed)")


def demo_verb(
    *,
    source: Annotated[
        str | None,
        option("DIR", "Serve this directory, and do not write to it.", "sample files"),
    ] = None,
    target: Annotated[
        str | None,
        option("DIR", "Stage into this existing directory.", "a temporary one"),
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the temporary directory with the staged files.")] = True,
    small: Annotated[int, option("N", "Number of small files to make.", min=0)] = 200,
    large: Annotated[int, option("N", "Number of large files to make.", min=0)] = 2,
    large_bytes: Annotated[int, option("BYTES", "Size of a large file.", min=0)] = 16 * 1024 * 1024,
    output: Output,
) -> int:
    """Stage files from an SSH server that it starts.

    It needs no peer. The server runs in another process, on a port of the loopback interface. The SHA-256 of every
    staged file is compared with the original's.
    """
    require_posix()
    if source is not None and not os.path.isdir(source):
        raise ValueError(f"--source must be a directory: {escape(source)}")
    staged = None if target is None else validate_target_directory(os.path.abspath(target))
    with _temporary_directory(keep=keep and staged is None) as temporary:
        if source is None:
            served = os.path.join(temporary, "collect")
            os.mkdir(served)
            originals = make_sample(served, small=small, large=large, large_bytes=large_bytes)
            output.show(Note(f"made {len(originals)} files in {escape(served)}"))
        else:
            served = os.path.abspath(source)
            originals = hash_files(served)
        if staged is None:
            staged = os.path.join(temporary, "staged")
            os.mkdir(staged)
        report, left_out = _stage(served, staged, output, may_write=source is None)
        different = [name for name, digest in originals.items() if _digest(os.fsencode(staged), name) != digest]
        if source is None:
            shutil.rmtree(served)
    result = DemoResult(
        source=served,
        target=staged,
        kept=keep or target is not None,
        report=report,
        compared=len(originals),
        different=tuple(os.fsdecode(name) for name in different),
        left_out=tuple(left_out),
    )
    output.show(result)
    return result.exit


def _stage(source: str, target: str, output: Output, *, may_write: bool) -> tuple[StageReport, list[str]]:
    """Stage *source* as a program would stage a peer; return the report and the steps that were left out."""
    from peerstage.testing.server import ssh_server  # loads cryptography, which no other verb needs so early

    left_out: list[str] = []
    with ssh_server(source) as server:
        output.show(Note(f"serving {escape(source)} on {server.host}, port {server.port}"))
        with (
            output.progress() as on_progress,
            RemotePeer(server.host, "/", None, server.username, ssh=server.options, on_progress=on_progress) as peer,
            cancel_on_signal(peer.cancel),
        ):
            if not peer.checkCollectIndicator():
                left_out.append(f"{COLLECT_INDICATOR} does not exist: a program would try again later")
            with contextlib.suppress(IncompleteStage):  # the report has the failures
                peer.stagePeer(target)
            if may_write:
                peer.writeStageIndicator()
            else:
                left_out.append(f"{STAGE_INDICATOR} was not written: --source is never written to")
            report = peer.last_report
    if report is None:
        raise RuntimeError("The stage has left no report.")
    return report, left_out


@contextlib.contextmanager
def _temporary_directory(*, keep: bool) -> Iterator[str]:
    """Yield a new temporary directory; remove it unless *keep* is set and the block succeeded."""
    path = tempfile.mkdtemp(prefix="peerstage-demo-")
    try:
        yield path
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


def _digest(directory: bytes, name: bytes) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(os.path.join(directory, name), "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
