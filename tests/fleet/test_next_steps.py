"""The next step for each peer that was not staged as it should be."""

from __future__ import annotations

from typing import Any

import pytest

from peerstage import SSHOptions
from peerstage.fleet.next_steps import next_step
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.results import Flag, PeerResult, StageSummary, Verdict
from peerstage.reasons import Reason
from peerstage.records import FileResult

DEFAULT = "/etc/peerstage/plan.toml"


def step(reason: Reason | None = None, *, source: str | None = DEFAULT, job: Any = None, **changes: Any) -> str | None:
    peer = PeerJob(**{"name": "db1", "collect_dir": "/srv/collect", "user": "backup", **(job or {})})
    plan = FleetPlan(staging="/srv/staging", peers=(peer,), source=source)
    result = PeerResult(**{"peer": "db1", "verdict": Verdict.FAILED, "reason": reason, **changes})
    return next_step(result, peer, plan)


def incomplete(*failures: FileResult, failed: int | None = None) -> StageSummary:
    count = len(failures) if failed is None else failed
    return StageSummary(transport="sftp", target="/t", failed=count, failures=failures)


def entry(name: str, reason: Reason = Reason.NOT_A_FILE) -> FileResult:
    return FileResult(name, error="It is a directory.", reason=reason)


def test_nobody_has_to_act_for_a_staged_peer_and_for_one_that_is_ignored() -> None:
    assert step(verdict=Verdict.STAGED) is None
    assert step(Reason.CONNECT_TIMEOUT, ignored=True) is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Reason.CONNECT_TIMEOUT, "peerstage doctor db1"),
        (Reason.LOGIN_REFUSED, "peerstage doctor db1"),
        (Reason.WRITE_DENIED, "peerstage doctor db1"),
        (Reason.HOST_KEY_CHANGED, "peerstage doctor db1"),
        (Reason.HOST_KEY_UNKNOWN, "peerstage trust db1"),
        (Reason.CONNECTION_LOST, "peerstage run db1"),
        (Reason.STALE, "see why its job has not run again; to stage what is there, peerstage run db1 --again"),
        (Reason.NO_SPACE, "free space on this machine; then peerstage run db1"),
        (Reason.TARGET_NOT_WRITABLE, "correct that on this machine; then peerstage run db1"),
        (Reason.CONFIGURATION_UNREADABLE, "correct that; then peerstage run db1"),
        (None, "peerstage run db1 --verbose"),
    ],
)
def test_the_step_depends_on_the_reason(reason: Reason | None, expected: str) -> None:
    assert step(reason) == expected


def test_a_command_names_another_plan_than_the_default_one() -> None:
    assert step(Reason.LOGIN_REFUSED, source="/my plan.toml") == "peerstage doctor db1 --plan '/my plan.toml'"


def test_without_a_plan_file_a_command_has_the_peer_itself_if_that_says_everything() -> None:
    assert step(Reason.LOGIN_REFUSED, source=None) == "peerstage doctor backup@db1:/srv/collect"
    assert step(Reason.HOST_KEY_UNKNOWN, source=None, job={"host": "db1.example.com"}) == (
        "peerstage trust db1.example.com"
    )
    assert step(Reason.LOGIN_REFUSED, source=None, job={"ssh": SSHOptions(port=2222)}) == (
        "peerstage guide troubleshooting"
    )
    assert step(Reason.CONNECTION_LOST, source=None) == "run it again"


def test_the_doctor_is_not_advised_for_peers_that_it_refuses() -> None:
    assert step(Reason.NOT_FOUND, job={"transport": "local", "user": None}) == "peerstage check db1"
    assert step(Reason.RCP_COMMAND_FAILED, job={"transport": "rcp"}) == "peerstage check db1"


def test_entries_that_cannot_be_staged_are_named() -> None:
    report = incomplete(entry("old"), entry("sock.1", Reason.NOT_A_FILE))
    assert step(Reason.INCOMPLETE_STAGE, verdict=Verdict.INCOMPLETE, report=report) == (
        'remove what cannot be staged on the peer, or add "old", "sock.1" to exclude'
    )


@pytest.mark.parametrize("name", ['a"]\n', "a b", "*", "$(reboot)", "`x`", "x\x1b[2J", "é", "x" * 101])
def test_a_name_that_a_peer_chose_is_quoted_only_if_it_is_plain(name: str) -> None:
    report = incomplete(entry(name))
    advice = step(Reason.INCOMPLETE_STAGE, verdict=Verdict.INCOMPLETE, report=report)
    assert advice == "remove what cannot be staged on the peer, or add it to exclude"


def test_more_entries_than_the_summary_has_are_not_named() -> None:
    advice = step(Reason.INCOMPLETE_STAGE, verdict=Verdict.INCOMPLETE, report=incomplete(entry("old"), failed=21))
    assert advice == "remove what cannot be staged on the peer, or add it to exclude"


def test_what_may_succeed_the_next_time_is_tried_again() -> None:
    report = incomplete(entry("old"), entry("data", Reason.CHANGED_WHILE_STAGED))
    assert step(Reason.INCOMPLETE_STAGE, verdict=Verdict.INCOMPLETE, report=report) == (
        "peerstage run db1; if that fails too, peerstage guide troubleshooting"
    )


def test_an_empty_and_a_small_stage_name_their_setting() -> None:
    empty = step(Reason.NOTHING_TO_STAGE, verdict=Verdict.INCOMPLETE, flags=(Flag.EMPTY,))
    small = step(verdict=Verdict.STAGED, flags=(Flag.SMALLER,))
    assert empty is not None
    assert small is not None
    assert "allow_empty = true for db1" in empty
    assert "min_bytes of db1" in small


def test_a_peer_that_was_not_started_is_run() -> None:
    assert step(Reason.CANCELLED, verdict=Verdict.NOT_STARTED) == "peerstage run db1"
