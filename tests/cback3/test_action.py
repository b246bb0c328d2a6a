"""The extended action on the objects that cback3 hands over: what is staged, what is logged, how it ends."""

from __future__ import annotations

import inspect
import os
import re
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
from peerstage.cback3.log import CbackLog
from peerstage.errors import ConfigurationError, LandingError
from peerstage.peer.local import LocalPeer
from peerstage.testing.contract import landed
from support.waiting import wait_until

Log = Callable[[], Sequence[tuple[str, str]]]


@pytest.fixture
def ready(collect: Path) -> Path:
    """A collect directory with two files."""
    (collect / "cback.collect").touch()
    (collect / "a").write_bytes(b"a")
    return collect


def test_it_is_called_as_cback3_calls_its_actions() -> None:
    assert list(inspect.signature(cback3.executeAction).parameters) == ["configPath", "options", "config"]


@pytest.mark.usefixtures("fresh_interpreter")
def test_naming_it_loads_nothing_that_other_actions_would_wait_for() -> None:
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
    assert landed(site.day / "here") == {b"cback.collect": b"", b".dot": b"dot"}
    assert landed(site.day / site.server.host) == {b"cback.collect": b"", b"a": b"a"}
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


def test_peers_of_the_peers_section_are_those_where_the_stage_section_has_none(site: Site, ready: Path) -> None:
    site.peers = SimpleNamespace(localPeers=[local("common", ready)], remotePeers=None)
    site.run()
    assert (site.day / "common" / "a").exists()
    site.stage.localPeers = [local("own", ready)]
    site.run()
    assert sorted(os.listdir(site.day)) == ["cback.stage", "common", "own"]


def test_one_that_fails_does_not_take_the_others_along(site: Site, ready: Path, tmp_path: Path, cback_log: Log) -> None:
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
    for week_begins in (True, False):
        assert ignores_failures(mode, week_begins=week_begins) == (week_begins in ignored)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("begins", [False, True])
def test_a_week_begins_on_its_day_and_with_a_full_backup(
    site: Site, tmp_path: Path, cback_log: Log, full: bool, begins: bool
) -> None:
    site.stage.localPeers = [local(f"{mode}", tmp_path / "no", mode) for mode in ("none", "all", "daily", "weekly")]
    today = datetime.now().weekday()
    days = ("Monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    site.options.startingDay = days[today if begins else today - 1]
    site.run(full=full)
    levels = {match[1]: level for level, text in cback_log() if (match := re.match(r"Peer (\w+) was not", text))}
    week = full or begins
    assert levels == {
        "none": "ERROR",
        "all": "INFO",
        "daily": "ERROR" if week else "INFO",
        "weekly": "INFO" if week else "ERROR",
    }


def test_where_failures_are_ignored_their_reasons_are_information_too(site: Site, ready: Path, cback_log: Log) -> None:
    site.reaching(known_hosts="/dev/null")
    site.stage.remotePeers = [remote(site.server.host, ready, "all")]
    site.run()
    assert {level for level, _ in cback_log()} == {"INFO"}
    assert any("no key is known" in text for _, text in cback_log())
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.run()
    assert len([text for level, text in cback_log() if level == "ERROR"]) == 2


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_defect_that_one_peer_meets_does_not_cost_the_others(
    site: Site, ready: Path, cback_log: Log, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    stage = LocalPeer.stagePeer

    def breaks(self: LocalPeer, *others: Any) -> int:
        if self.name == "two":
            raise RuntimeError("boom")
        return stage(self, *others)

    monkeypatch.setattr(LocalPeer, "stagePeer", breaks)
    site.reaching(parallel=parallel)
    site.stage.localPeers = [local(name, ready) for name in ("one", "two", "three")]
    site.run()
    assert {path.parent.name for path in site.day.glob("*/a")} == {"one", "three"}
    errors = [text for level, text in cback_log() if level == "ERROR"]
    assert errors == ["Error staging two: unexpected RuntimeError: boom"]


def test_what_killed_runs_left_is_swept_on_every_day(site: Site, ready: Path) -> None:
    old = site.staging / "2020/01/01/db1/.peerstage-abcdefgh"
    old.mkdir(parents=True)
    (old / "lock").touch()
    site.stage.localPeers = [local("here", ready)]
    site.run()
    assert not old.exists()
    assert old.parent.exists()


def test_cback_s_rcp_command_is_run_where_our_file_asks_for_it(site: Site, ready: Path, cback_log: Log) -> None:
    site.stage.remotePeers = [remote(site.server.host, ready)]
    site.run()
    assert (site.day / site.server.host / "a").exists()
    site.reaching(transport="rcp")
    site.run()
    assert any("/no/such/rcp" in text for level, text in cback_log() if level == "ERROR")


def test_nothing_of_our_log_stays_bent(site: Site, ready: Path) -> None:
    import logging

    ours = logging.getLogger("peerstage")
    before = (ours.level, ours.propagate, list(ours.handlers))
    site.stage.localPeers = [local("here", ready)]
    site.run()
    assert (ours.level, ours.propagate, list(ours.handlers)) == before


# What can not be meant.


@pytest.mark.parametrize(
    ("break_it", "words"),
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
def test_a_configuration_that_can_not_be_meant_is_a_value_error_and_makes_nothing(
    site: Site, break_it: Callable[[Site], None], words: str
) -> None:
    break_it(site)
    with pytest.raises(ValueError, match=words):
        site.run()
    assert not site.staging.exists()


def test_a_contradiction_of_our_own_file_is_refused_before_anything_is_made(site: Site, ready: Path) -> None:
    site.reaching(transport="guarded", elevate="sudo -n x")
    site.stage.remotePeers = [remote("db1", ready)]
    with pytest.raises(ConfigurationError, match=r"cback3\.peerstage\.ini: db1: .*elevate"):
        site.run()
    assert not site.staging.exists()


def test_a_place_that_can_not_be_made_ends_the_action(site: Site, ready: Path) -> None:
    site.stage.localPeers = [local("here", ready)]
    site.staging.write_bytes(b"a file")
    with pytest.raises(LandingError, match="staging"):
        site.run()


# Several at a time.


def test_several_at_a_time_leave_the_same_and_log_in_the_same_order(site: Site, ready: Path, cback_log: Log) -> None:
    site.stage.localPeers = [local(f"here{number}", ready) for number in range(5)]
    site.stage.remotePeers = [remote("down.invalid", ready), remote(site.server.host, ready)]
    logs = []
    for parallel in (1, 4):
        site.reaching(parallel=parallel)
        before = len(cback_log())
        site.run()
        taken = [(level, re.sub(r"[\d.]+ s\.", "", text)) for level, text in cback_log()[before:]]
        logs.append([one for one in taken if "there already" not in one[1]])
        assert (site.day / site.server.host / "a").exists()
    assert logs[0][0] != logs[0][1]
    assert [one for one in logs[1] if "cback.stage" not in one[1]] != []
    assert strip(logs[0]) == strip(logs[1])


def strip(log: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without how many files there were: a stage indicator is one more the second time."""
    return [(level, re.sub(r"\d+ (files|bytes)", "", text)) for level, text in log]


def test_what_one_says_waits_for_its_turn() -> None:
    import logging

    heard: list[str] = []

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    flow = logging.getLogger("CedarBackup3.log")
    hears = Hears()
    flow.addHandler(hears)
    try:
        log = CbackLog(["one", "two"])

        def say(text: str) -> None:
            log.handle(logging.makeLogRecord({"msg": text, "name": "peerstage.x", "levelno": logging.ERROR}))

        second = threading.Thread(target=lambda: speak(log, "two", lambda: say("second")))
        with log.speaking_of("one"):
            say("first")
            second.start()
            second.join()
            assert heard == ["first"]
            say("still first")
        assert heard == ["first", "still first", "second"]
    finally:
        flow.removeHandler(hears)


def speak(log: CbackLog, peer: str, say: Callable[[], None]) -> None:
    with log.speaking_of(peer):
        say()


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.usefixtures("leaves_nothing")
def test_an_interrupt_ends_every_peer_and_publishes_nothing_half(
    site: Site, ready: Path, tmp_path: Path, parallel: int
) -> None:
    """cback3 has no handler for SIGINT but Python's own."""
    site.reaching(parallel=parallel, transport="rcp")
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
