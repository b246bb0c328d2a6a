"""``peerstage demo``: real files from a real SSH server that it starts itself, staged and compared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Annotated

import typer

from peerstage.cli import options
from peerstage.cli.show import Outcome, Show, choose_show, log_to_stderr
from peerstage.cli.signals import cancelling
from peerstage.errors import IncompleteStage, escape
from peerstage.landing.private import require_posix
from peerstage.peer.base import COLLECT_INDICATOR, STAGE_INDICATOR
from peerstage.peer.remote import RemotePeer
from peerstage.records import StageReport
from peerstage.staging import target_directory
from peerstage.testing.sample import digests, make_sample

_CHUNK = 1024 * 1024


def demo_verb(
    source: Annotated[
        str | None, typer.Option(metavar="DIR", help="Serve this directory, and do not write into it.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="DIR", help="Stage into this existing directory, not a temporary one.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the temporary directory with the staged files.")] = True,
    small: Annotated[int, typer.Option(min=0, help="How many small files to make.")] = 200,
    large: Annotated[int, typer.Option(min=0, help="How many large files to make.")] = 2,
    large_bytes: Annotated[int, typer.Option(min=0, help="Size of a large file.")] = 16 * 1024 * 1024,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Stage real files from an SSH server of its own.

    The server runs on a loopback port, in a process of its own. Every SHA-256 is compared with the original's.
    """
    log_to_stderr(verbose=verbose)
    show = choose_show(as_json=as_json)
    require_posix()
    if source is not None and not os.path.isdir(source):
        raise ValueError(f"--source must be a directory: {escape(source)}")
    place = None if target is None else target_directory(os.path.abspath(target))
    with _scratch(keep=keep and place is None) as scratch:
        if source is None:
            served = os.path.join(scratch, "collect")
            originals = _make_files(served, small, large, large_bytes)
            show.told(f"made {len(originals)} files in {escape(served)}")
        else:
            served = os.path.abspath(source)
            originals = digests(served)
        if place is None:
            place = os.path.join(scratch, "staged")
            os.mkdir(place)
        report, left_out = _stage(served, place, show, ours=source is None)
        different = [name for name, digest in originals.items() if _digest(_join(place, name)) != digest]
        if source is None:
            shutil.rmtree(served)
    outcome = Outcome(
        source=served,
        target=place,
        kept=keep or target is not None,
        report=report,
        compared=len(originals),
        different=tuple(os.fsdecode(name) for name in different),
        left_out=tuple(left_out),
    )
    show.demonstrated(outcome)
    return outcome.exit


def _stage(source: str, target: str, show: Show, *, ours: bool) -> tuple[StageReport, list[str]]:
    """Do with *source* what a program would do with a peer; return the report, and what was left out."""
    from peerstage.testing.server import ssh_server  # loads cryptography, which no other verb needs so early

    left_out: list[str] = []
    with ssh_server(source) as server:
        show.told(f"serving {escape(source)} on {server.host}, port {server.port}")
        with (
            show.progress() as on_progress,
            RemotePeer(server.host, "/", None, server.username, ssh=server.options, on_progress=on_progress) as peer,
            cancelling(peer.cancel),
        ):
            if not peer.checkCollectIndicator():
                left_out.append(f"{COLLECT_INDICATOR} is not there: a program would come back later")
            try:
                peer.stagePeer(target)
            except IncompleteStage:
                pass  # what is not staged is in the report, and shown
            if ours:
                peer.writeStageIndicator()
            else:
                left_out.append(f"{STAGE_INDICATOR} was not written: the directory is not the demo's own")
            report = peer.last_report
    if report is None:
        raise RuntimeError("A stage has left no report.")
    return report, left_out


def _make_files(directory: str, small: int, large: int, large_bytes: int) -> dict[bytes, str]:
    """Fill a new directory and return the SHA-256 of each file by name; the collect indicator is among them."""
    os.mkdir(directory)
    return make_sample(directory, small=small, large=large, large_bytes=large_bytes)


@contextlib.contextmanager
def _scratch(*, keep: bool) -> Iterator[str]:
    """Yield a fresh temporary directory; it goes away unless it is to be kept and all went well."""
    path = tempfile.mkdtemp(prefix="peerstage-demo-")
    try:
        yield path
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


def _join(directory: str, name: bytes) -> bytes:
    return os.path.join(os.fsencode(directory), name)


def _digest(path: bytes) -> str | None:
    """Return the SHA-256 of a file, None if it is not there."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
