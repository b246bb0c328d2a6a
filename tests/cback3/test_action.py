"""The extended action with the objects that cback3 passes: staged files, log records, and errors."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cback3.conftest import Site, local, remote
from peerstage import cback3
from peerstage.cback3.action import ignores_failures
from peerstage.cback3.cback_log import CbackLogHandler
from peerstage.cback3.staging_directories import StagingDirectories
from peerstage.errors import ConfigurationError, TargetError
from peerstage.peer.local import LocalPeer
from peerstage.records import Ownership
from peerstage.testing.contract import files_in
from support.sshd import free_port
from support.waiting import wait_until

Log = Callable[[], Sequence[tuple[str, str]]]


@pytest.fixture
def ready(collect: Path) -> Path:
    """A collect directory with two files."""
    (collect / "cback.collect").touch()
    (collect / "a").write_bytes(b"a")
    return collect


def test_its_arguments_are_those_of_the_actions_of_cback3() -> None:
    assert list(inspect.signature(cback3.executeAction).parameters) == ["configPath", "options", "config"]


@pytest.mark.usefixtures("fresh_interpreter")
def test_importing_it_loads_neither_paramiko_nor_cback3() -> None:
    code = (
        "import sys, peerstage.cback3; print([name for name in sys.modules if 'paramiko' in name or 'Cedar' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_local_and_remote_peers_are_staged_and_marked(site: Site, ready: Path, tmp_path: Path, cback_log: Log) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "cback.collect").touch()
    (here / ".dot").write_bytes(b"dot")
    site.stage.localPeers = [local("here", here)]
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.run()
    assert files_in(site.day / "here") == {b"cback.collect": b"", b".dot": b"dot"}
    assert files_in(site.day / site.server.host) == {b"cback.collect": b"", b"a": b"a"}
    assert (site.day / "cback.stage").read_bytes() == b""
    assert (ready / "cback.stage").exists()
    assert (here / "cback.stage").exists()
    assert site.day == site.staging / time.strftime("%Y/%m/%d")
    assert {level for level, _ in cback_log()} == {"INFO"}
    assert [text for _, text in cback_log() if text.startswith(("Stag", "The stage"))] == [
        "Staging peer here.",
        "Staged 2 files for peer here.",
        f"Staging peer {site.server.host}.",
        f"Staged 2 files for peer {site.server.host}.",
        "The stage action is done.",
    ]


def test_stage_options_of_the_settings_file_apply_to_local_and_remote_peers(site: Site, ready: Path) -> None:
    os.utime(ready / "a", (1_000_000_000, 1_000_000_000))
    site.stage.localPeers = [local("here", ready)]
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.write_settings(preserve_times="yes")
    site.run()
    assert [(site.day / name / "a").stat().st_mtime for name in ("here", site.server.host)] == [1_000_000_000] * 2


def test_files_are_compared_with_the_checksum_file_of_the_settings(site: Site, ready: Path) -> None:
    (ready / "SUMS").write_text(f"{hashlib.sha256(b'other').hexdigest()}  a\n")
    site.stage.localPeers = [local("here", ready)]
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.write_settings(checksums="SUMS")
    site.run()
    for name in ("here", site.server.host):
        assert sorted(os.listdir(site.day / name)) == ["SUMS", "cback.collect"]


def test_a_bandwidth_limit_applies_to_remote_peers_alone(site: Site, ready: Path) -> None:
    site.stage.localPeers = [local("here", ready)]
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.write_settings(bwlimit="1M")
    site.run()
    assert all((site.day / name / "a").exists() for name in ("here", site.server.host))


def test_the_peers_section_applies_if_the_stage_section_has_no_peers(site: Site, ready: Path) -> None:
    site.peers = SimpleNamespace(localPeers=[local("common", ready)], remotePeers=None)
    site.run()
    assert (site.day / "common" / "a").exists()
    site.stage.localPeers = [local("own", ready)]
    site.run()
    assert sorted(os.listdir(site.day)) == ["cback.stage", "common", "own"]


def test_a_failing_peer_does_not_stop_the_others(site: Site, ready: Path, tmp_path: Path, cback_log: Log) -> None:
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    empty.mkdir()
    (bad / "sub").mkdir(parents=True)
    (bad / "cback.collect").touch()
    site.stage.localPeers = [local("missing", tmp_path / "no"), local("empty", empty), local("bad", bad)]
    site.stage.remotePeers = [remote("down.invalid", ready), remote(site.server.host, ready)]
    site.run()
    assert (site.day / site.server.host / "a").exists()
    assert sorted(os.listdir(site.day)) == sorted(
        ["bad", "cback.stage", "down.invalid", "empty", "missing", site.server.host]
    )
    assert not (bad / "cback.stage").exists()
    assert [text for level, text in cback_log() if level == "ERROR" and "not ready" in text] == [
        "Peer missing was not ready to be staged.",
        "Peer empty was not ready to be staged.",
        "Peer down.invalid was not ready to be staged.",
    ]
    (failed,) = [text for level, text in cback_log() if text.startswith("Error staging")]
    assert failed.startswith("Error staging bad: bad ")


@pytest.mark.parametrize(
    ("mode", "ignored"),
    [(None, ()), ("none", ()), ("all", (True, False)), ("daily", (False,)), ("weekly", (True,))],
)
def test_failures_are_ignored_as_cback3_ignores_them(mode: str | None, ignored: tuple[bool, ...]) -> None:
    for is_start_of_week in (True, False):
        assert ignores_failures(mode, is_start_of_week=is_start_of_week) == (is_start_of_week in ignored)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("is_starting_day", [False, True])
def test_a_week_starts_on_the_starting_day_and_with_a_full_backup(
    site: Site, tmp_path: Path, cback_log: Log, full: bool, is_starting_day: bool
) -> None:
    site.stage.localPeers = [local(f"{mode}", tmp_path / "no", mode) for mode in ("none", "all", "daily", "weekly")]
    today = datetime.now().weekday()
    days = ("Monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    site.options.startingDay = days[today if is_starting_day else today - 1]
    site.run(full=full)
    levels = {match[1]: level for level, text in cback_log() if (match := re.match(r"Peer (\w+) was not", text))}
    is_start_of_week = full or is_starting_day
    assert levels == {
        "none": "ERROR",
        "all": "INFO",
        "daily": "ERROR" if is_start_of_week else "INFO",
        "weekly": "INFO" if is_start_of_week else "ERROR",
    }


def test_reasons_of_ignored_failures_are_logged_at_info(site: Site, ready: Path, cback_log: Log) -> None:
    site.write_settings(known_hosts="/dev/null")
    site.stage.remotePeers = [remote(site.server.host, ready, "all")]
    site.run()
    assert {level for level, _ in cback_log()} == {"INFO"}
    assert any("no key is known" in text for _, text in cback_log())
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.run()
    assert len([text for level, text in cback_log() if level == "ERROR"]) == 2


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_bug_in_one_peer_does_not_stop_the_others(
    site: Site, ready: Path, cback_log: Log, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    stage = LocalPeer.stagePeer

    def fail_for_two(self: LocalPeer, *others: Any) -> int:
        if self.name == "two":
            raise RuntimeError("boom")
        return stage(self, *others)

    monkeypatch.setattr(LocalPeer, "stagePeer", fail_for_two)
    site.write_settings(parallel=parallel)
    site.stage.localPeers = [local(name, ready) for name in ("one", "two", "three")]
    site.run()
    assert {path.parent.name for path in site.day.glob("*/a")} == {"one", "three"}
    errors = [text for level, text in cback_log() if level == "ERROR"]
    assert errors == ["Error staging two: unexpected RuntimeError: boom"]


def test_leftovers_of_killed_runs_are_removed_on_every_day(site: Site, ready: Path) -> None:
    old = site.staging / "2020/01/01/db1/.peerstage-abcdef01"
    old.mkdir(parents=True)
    (old / "lock").touch()
    site.stage.localPeers = [local("here", ready)]
    site.run()
    assert not old.exists()
    assert old.parent.exists()


def test_the_rcp_command_of_cback_is_run_only_if_the_settings_file_requests_it(
    site: Site, ready: Path, cback_log: Log
) -> None:
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.run()
    assert (site.day / site.server.host / "a").exists()
    site.write_settings(transport="rcp")
    site.run()
    assert any("/no/such/rcp" in text for level, text in cback_log() if level == "ERROR")


def test_the_logger_is_restored_afterwards(site: Site, ready: Path) -> None:
    import logging

    ours = logging.getLogger("peerstage")
    before = (ours.level, ours.propagate, list(ours.handlers))
    site.stage.localPeers = [local("here", ready)]
    site.run()
    assert (ours.level, ours.propagate, list(ours.handlers)) == before


# Invalid configurations


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda site: setattr(site, "stage", None), "Stage configuration"),
        (lambda site: setattr(site, "options", None), "Stage configuration"),
        (lambda site: setattr(site.options, "backupUser", None), "backup_user"),
        (lambda site: setattr(site.options, "backupUser", "no-such-user"), "no-such-user"),
        (lambda site: setattr(site.options, "backupGroup", ""), "backup_group"),
        (lambda site: setattr(site.options, "startingDay", None), "starting_day"),
        (lambda site: setattr(site.stage, "targetDir", "staging"), "staging_dir must be an absolute path"),
        (lambda site: setattr(site.stage, "localPeers", [local("../up", "/c")]), "Peer name"),
        (lambda site: setattr(site.stage, "localPeers", [local("a", "c")]), "Collect directory"),
        (lambda site: setattr(site.stage, "remotePeers", [remote("a", "/c", "sometimes")]), "Ignore failure mode"),
        (lambda site: delattr(site.stage, "targetDir"), "staging_dir"),
    ],
)
def test_an_invalid_configuration_is_a_value_error_and_creates_nothing(
    site: Site, break_it: Callable[[Site], None], message: str
) -> None:
    break_it(site)
    with pytest.raises(ValueError, match=message):
        site.run()
    assert not site.staging.exists()


def test_contradictory_settings_are_refused_before_anything_is_created(site: Site, ready: Path) -> None:
    site.write_settings(transport="guarded", elevate="sudo -n x")
    site.stage.remotePeers = [remote("db1", ready)]
    with pytest.raises(ConfigurationError, match=r"cback3\.peerstage\.ini: db1: .*elevate"):
        site.run()
    assert not site.staging.exists()


def test_a_directory_that_cannot_be_created_ends_the_action(site: Site, ready: Path) -> None:
    site.stage.localPeers = [local("here", ready)]
    site.staging.write_bytes(b"a file")
    with pytest.raises(TargetError, match="staging"):
        site.run()


def test_a_directory_whose_owner_cannot_be_changed_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with StagingDirectories(str(tmp_path), "2026/11/24", ["db1"], Ownership(1, 1)):
        pass
    assert [record.getMessage() for record in caplog.records if record.name == "peerstage.cback3"] == [
        f"Cannot change the owner of {tmp_path}/{name}: Operation not permitted."
        for name in ("2026", "2026/11", "2026/11/24", "2026/11/24/db1")
    ]


# Several peers at a time


def test_parallel_staging_has_the_same_result_and_the_same_order_in_the_log(
    site: Site, ready: Path, tmp_path: Path, cback_log: Log
) -> None:
    # Each peer has a collect directory of its own: in a shared one, it could list the stage indicator of another peer
    # while that peer replaces it.
    directories = [tmp_path / f"here{number}" for number in range(5)]
    for directory in directories:
        shutil.copytree(ready, directory)
    site.stage.localPeers = [local(directory.name, directory) for directory in directories]
    site.stage.remotePeers = [remote("127.0.0.2", ready), remote(site.server.host, ready)]
    refused_port = f"[peer 127.0.0.2]\nport = {free_port()}\n"
    logs = []
    for parallel in (1, 4):
        site.write_settings(refused_port, parallel=parallel)
        before = len(cback_log())
        site.run()
        lines = [(level, re.sub(r"[\d.]+ s\.", "", text)) for level, text in cback_log()[before:]]
        logs.append([line for line in lines if "already exists" not in line[1]])
        assert (site.day / site.server.host / "a").exists()
    assert logs[0][0] != logs[0][1]
    assert [line for line in logs[1] if "cback.stage" not in line[1]] != []
    assert without_counts(logs[0]) == without_counts(logs[1])


def without_counts(log: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Remove numbers of files: there is a stage indicator more the second time."""
    return [(level, re.sub(r"\d+ (files|bytes)", "", text)) for level, text in log]


def test_the_records_of_a_peer_wait_for_its_turn() -> None:
    import logging

    messages: list[str] = []

    class RecordingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    flow = logging.getLogger("CedarBackup3.log")
    handler = RecordingHandler()
    flow.addHandler(handler)
    try:
        log = CbackLogHandler(["one", "two"])

        def log_error(text: str) -> None:
            log.handle(logging.makeLogRecord({"msg": text, "name": "peerstage.x", "levelno": logging.ERROR}))

        second = threading.Thread(target=lambda: log_in_turn(log, "two", lambda: log_error("second")))
        with log.in_turn("one"):
            log_error("first")
            second.start()
            second.join()
            assert messages == ["first"]
            log_error("still first")
        assert messages == ["first", "still first", "second"]
    finally:
        flow.removeHandler(handler)


def log_in_turn(log: CbackLogHandler, peer: str, log_record: Callable[[], None]) -> None:
    with log.in_turn(peer):
        log_record()


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.usefixtures("leaves_nothing")
def test_an_interrupt_cancels_every_peer_and_publishes_nothing(
    site: Site, ready: Path, tmp_path: Path, parallel: int
) -> None:
    """cback3 has only Python's default handler for SIGINT."""
    site.write_settings(parallel=parallel, transport="rcp")
    rcp = tmp_path / "rcp"
    rcp.write_text(
        f'#!/bin/sh\ncase $1 in */cback.collect) : >"$2"; exit;; esac\ntouch {tmp_path}/begun.$$\nsleep 1000\n'
    )
    rcp.chmod(0o755)
    site.options.rcpCommand = str(rcp)
    site.stage.remotePeers = [remote(name, ready) for name in ("a", "b", "c", "d", "e")]
    code = (
        "import sys, pickle\n"
        "from types import SimpleNamespace\n"
        "from peerstage.cback3 import executeAction\n"
        "path, config = pickle.load(sys.stdin.buffer)\n"
        "try:\n    executeAction(path, SimpleNamespace(full=False), config)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    import pickle
    import signal

    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((str(site.config_path), site.config)))
    process.stdin.flush()
    wait_until(lambda: len(list(tmp_path.glob("begun.*"))) == parallel)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == b"interrupted\n"
    assert {name: os.listdir(site.day / name) for name in "abcde"} == {name: [] for name in "abcde"}
    assert not (site.day / "cback.stage").exists()
    assert subprocess.run(["pgrep", "-f", str(rcp)], capture_output=True).stdout == b""
