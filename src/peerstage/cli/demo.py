"""``peerstage demo``: real files from a real SSH server that it starts itself, staged and compared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from peerstage.cli import options
from peerstage.cli.show import Outcome, Show, choose_show, log_to_stderr
from peerstage.cli.signals import cancelling
from peerstage.errors import IncompleteStage, NotAvailable, escape
from peerstage.landing.private import require_posix
from peerstage.peer.base import COLLECT_INDICATOR, STAGE_INDICATOR
from peerstage.peer.remote import RemotePeer
from peerstage.staging import target_directory

_USER = "backup"
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

    The server runs on a loopback port in this process. Every SHA-256 is compared with the original's.
    """
    log_to_stderr(verbose=verbose)
    show = choose_show(as_json=as_json)
    require_posix()
    served = None if source is None else _source_directory(source)
    place = None if target is None else target_directory(os.path.abspath(target))
    with _scratch(keep=keep and place is None) as scratch:
        if served is None:
            served = _make_files(os.path.join(scratch, "collect"), small, large, large_bytes)
            show.told(f"made {small} small and {large} large files in {escape(served)}")
        if place is None:
            place = os.path.join(scratch, "staged")
            os.mkdir(place)
        outcome = _run(served, place, show, ours=source is None, kept=keep or target is not None)
        if source is None:
            shutil.rmtree(served)
    show.demonstrated(outcome)
    return outcome.exit


def _run(source: str, target: str, show: Show, *, ours: bool, kept: bool) -> Outcome:
    left_out: list[str] = []
    with _serve(source) as server:
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
    originals = _digests(source, leave_out=STAGE_INDICATOR if ours else None)
    different = tuple(name for name, digest in originals.items() if _digest(os.path.join(target, name)) != digest)
    return Outcome(
        source=source,
        target=target,
        kept=kept,
        report=report,
        compared=len(originals),
        different=different,
        left_out=tuple(left_out),
    )


def _make_files(directory: str, small: int, large: int, large_bytes: int) -> str:
    from peerstage.testing.sample import make_sample

    os.mkdir(directory)
    make_sample(directory, small=small, large=large, large_bytes=large_bytes)
    with open(os.path.join(directory, COLLECT_INDICATOR), "wb"):
        pass
    return directory


def _serve(directory: str) -> AbstractContextManager[Any]:
    try:
        from peerstage.testing.server import ssh_server
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "asyncssh":
            raise
        raise NotAvailable("The demo's SSH server needs an extra: pip install 'peerstage[demo]'") from exc
    return ssh_server(directory, username=_USER)


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


def _source_directory(path: str) -> str:
    if not os.path.isdir(path):
        raise ValueError(f"--source must be a directory: {escape(path)}")
    return os.path.abspath(path)


def _digests(directory: str, *, leave_out: str | None) -> dict[str, str | None]:
    """Return the SHA-256 of everything that the shell's ``DIR/*`` names and that is a regular file, links followed."""
    names = sorted(name for name in os.listdir(directory) if not name.startswith(".") and name != leave_out)
    return {name: _digest(path) for name in names if os.path.isfile(path := os.path.join(directory, name))}


def _digest(path: str) -> str | None:
    """Return the SHA-256 of a file, None if it is not there."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
