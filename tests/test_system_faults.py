"""Every system call of the package fails once: a `StageError` is raised, and nothing is leaked or left incomplete.

Each line that makes a call fails once, with its likeliest error; with ``--every-fault``, every call fails with every
error.
"""

from __future__ import annotations

import errno
import logging
import shutil
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peerstage import LocalPeer, RemotePeer, Retry, SSHOptions, StageError
from peerstage.peer.base import BackupPeer
from support.file_server import new_identity, serving_files
from support.leaks import Snapshot
from support.ssh_server import LOGGER
from support.system_faults import Call, Faults

NEW = {"a": b"new a" * 1000, "b": b"new b"}


@dataclass
class Site:
    """A server, a collect directory and a target."""

    home: Path
    port: int
    host_key: str

    @property
    def collect(self) -> Path:
        return self.home / "collect"

    @property
    def target(self) -> Path:
        return self.home / "target"

    @property
    def working(self) -> Path:
        return self.home / "working"

    def options(self, **changes: Any) -> SSHOptions:
        values = {"port": self.port, "identity": str(self.home / "id"), "agent": str(self.home / "no agent")}
        return SSHOptions(**{**values, "config": str(self.home / "config"), **changes})

    def reset(self) -> None:
        """Reset the directories; the target holds an older file."""
        (self.collect / "cback.stage").unlink(missing_ok=True)
        for directory in (self.target, self.working):
            shutil.rmtree(directory)
            directory.mkdir()
        (self.target / "a").write_bytes(b"old a")
        (self.home / "learnt").write_bytes(b"")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving_files() as (port, host_key):
        site = Site(tmp_path / "site", port, host_key)
        for path in (site.home, site.collect, site.target, site.working):
            path.mkdir()
        for name, data in NEW.items():
            (site.collect / name).write_bytes(data)
        new_identity(site.home / "id")
        (site.home / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
        (site.home / "more").write_text("ServerAliveInterval 60\n")
        (site.home / "config").write_text(f"Include {site.home}/mor*\n")
        yield site


def over_sftp(site: Site, **options: Any) -> BackupPeer:
    """Over SFTP."""
    ssh = site.options(**{"known_hosts": str(site.home / "known"), **options})
    return RemotePeer("127.0.0.1", str(site.collect), None, "backup", ssh=ssh, retry=Retry(tries=1))


def learning(site: Site) -> BackupPeer:
    """Over SFTP, from a host whose key is not known yet."""
    return over_sftp(site, known_hosts=str(site.home / "learnt"), host_key="accept-new")


def through_a_command(site: Site) -> BackupPeer:
    """Through a ProxyCommand."""
    relay = Path(__file__).parent / "support" / "relay.py"
    config = site.home / "command"
    config.write_text(f"ProxyCommand {sys.executable} -S -E {relay} /dev/null %h %p\n")
    return over_sftp(site, config=str(config))


def by_a_command(site: Site) -> BackupPeer:
    """By an rcp command."""
    script = site.home / "copy"
    script.write_text('#!/bin/sh\necho copying\nfrom="${1#*@*:}"\nto="${2#*@*:}"\nexec cp $from "$to"\n')
    script.chmod(0o755)
    return RemotePeer("127.0.0.1", str(site.collect), str(site.working), "backup", rcpCommand=str(script))


def of_this_machine(site: Site) -> BackupPeer:
    """A directory of this machine."""
    return LocalPeer("127.0.0.1", str(site.collect))


def run(peer: BackupPeer, site: Site) -> list[str]:
    """Check, stage and mark the peer; return the errors."""
    failed = []
    operations: tuple[Callable[[], object], ...] = (
        lambda: peer.stagePeer(str(site.target)),
        lambda: peer.checkCollectIndicator("a"),
        peer.writeStageIndicator,
    )

    def run_operations() -> None:
        for operation in operations:
            try:
                operation()
            except (ValueError, StageError) as exc:
                failed.append(f"{type(exc).__name__}: {exc}")

    if isinstance(peer, RemotePeer):
        with peer:
            run_operations()
    else:
        run_operations()
    return failed


def problems_with(site: Site, failed: list[str], warned: list[str]) -> Iterator[str]:
    """Yield what is wrong after a run in which a call has failed: an unclear message, a leftover, or a changed file."""
    for text in failed:
        if not text.isprintable() or not ("127.0.0.1" in text or text.startswith("ValueError")):
            yield f"the message is not a single line with the name of the peer: {text}"
    for path in site.target.iterdir():
        if stat.S_ISDIR(path.lstat().st_mode):
            if not any(path.name in line for line in warned):
                yield f"{path.name} is left in the target, and no warning names it"
        elif path.read_bytes() not in (NEW.get(path.name), b"old a" if path.name == "a" else None):
            yield f"{path.name} is neither old nor new"
    if not failed and {path.name for path in site.target.iterdir()} < NEW.keys():
        yield "the run succeeded, and files are missing"
    for path in site.working.iterdir():
        if not any(path.name in line for line in warned):
            yield f"{path.name} is left in the working directory, and no warning names it"


#: Calls of the target, which have tests of their own in tests/target.
_TRIED_ELSEWHERE = "target/"
#: Calls that have failed for an earlier kind of peer, and are not repeated for the next.
_tried: set[Call] = set()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("kind", [over_sftp, learning, through_a_command, by_a_command, of_this_machine])
def test_a_failed_system_call_is_a_stage_error_and_leaves_nothing_behind(
    site: Site, kind: Callable[[Site], BackupPeer], caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    caplog.set_level(logging.CRITICAL + 1, LOGGER)  # of the test's server
    caplog.set_level(logging.WARNING, "peerstage")
    faults, every = Faults(), request.config.getoption("--every-fault")
    site.reset()
    with faults.failing(lambda call: False, 0):
        assert run(kind(site), site) == []
    assert len(faults.seen) > 30

    def problems(is_due: Callable[[Call], bool], code: int) -> Iterator[str]:
        site.reset()
        caplog.clear()
        before = Snapshot.take()
        with warnings.catch_warnings(record=True) as unclosed, faults.failing(is_due, code):
            warnings.simplefilter("always", ResourceWarning)
            try:
                failed = run(kind(site), site)
            except Exception as exc:
                yield f"raises {exc!r}"
            else:
                yield from problems_with(site, failed, [record.getMessage() for record in caplog.records])
            if every:
                yield from before.describe_leaks()
        yield from (str(warning.message) for warning in unclosed)

    before = Snapshot.take()
    calls = enumerate(faults.seen) if every else enumerate(dict.fromkeys(faults.seen))
    wrong = [
        f"{call}, {errno.errorcode[code]}: {problem}"
        for number, call in calls
        if every or not (call in _tried or call.location.startswith(_TRIED_ELSEWHERE))
        for code in (call.errnos if every else call.errnos[:1])
        for problem in problems(is_from(number) if every else call.__eq__, code)
    ]
    _tried.update(faults.seen)
    assert not wrong, "\n".join(wrong)
    before.compare()


def is_from(number: int) -> Callable[[Call], bool]:
    """Return a condition that is true for call *number* and later ones."""
    turn = iter(range(number))
    return lambda call: next(turn, None) is None


def test_a_packet_that_cannot_be_sent_ends_the_connection_at_once(site: Site) -> None:
    """Otherwise the reply would be awaited for a minute, and later packets would be out of sequence."""
    faults = Faults()
    site.reset()
    with faults.failing(lambda call: False, 0):
        assert run(over_sftp(site), site) == []
    sends = [number for number, call in enumerate(faults.seen) if call.name == "send"]
    for number in sends[::4]:
        site.reset()
        with faults.failing(is_from(number), errno.ENOMEM):
            failed = run(over_sftp(site), site)
        assert not any("useful" in text or "within" in text for text in failed), failed
