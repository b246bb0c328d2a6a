"""Hooks: what they get, how they end, and what their failures do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage.errors import Cancelled, StageError
from peerstage.exit_codes import ExitCode
from peerstage.fleet.hooks import Hooks
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.results import Flag, FleetReport, PeerResult, StageSummary, Verdict
from peerstage.fleet.secrets import Secret
from peerstage.reasons import Reason
from support.waiting import exits_within, wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

TARGET = "/srv/staging/2026/11/23"
REPORT = FleetReport(run="r1", plan=None, staging="/srv/staging", target=TARGET, day="2026/11/23", started=0.0)
STAGED = PeerResult(
    peer="db1",
    verdict=Verdict.STAGED,
    flags=(Flag.SMALLER,),
    marked=True,
    report=StageSummary(transport="sftp", target="/t", files=3, bytes=1000),
)
HOSTILE = "x\n\x1b[2J\u202ey\0z"


class Scripts:
    """Makes hooks of shell scripts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def hooks(self, hook_timeout: float = 60.0, password: Secret | None = None, **scripts: str) -> Hooks:
        commands = {}
        for name, script in scripts.items():
            path = self.directory / name
            path.write_text(f"#!/bin/sh\ncd {self.directory}\n{script}\n")
            path.chmod(0o755)
            commands[name] = (str(path), "an argument")
        peer = PeerJob(name="db1", collect_dir="/collect", user="backup", password=password)
        plan = FleetPlan(staging="/srv/staging", peers=(peer,), hook_timeout=hook_timeout, **commands)
        return Hooks(plan, run="r1", target=TARGET, day=REPORT.day)

    def environment(self, name: str) -> dict[str, str]:
        entries = (self.directory / name).read_bytes().decode().rstrip("\0").split("\0")
        return dict(entry.split("=", 1) for entry in entries)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


def test_a_plan_without_hooks_starts_nothing(scripts: Scripts) -> None:
    hooks = scripts.hooks()
    hooks.run_before()
    hooks.run_after_peer(STAGED)
    assert hooks.finish(REPORT) is REPORT


def test_each_hook_gets_its_arguments_and_what_happened(scripts: Scripts) -> None:
    hooks = scripts.hooks(before="env -0 >b", after_peer="env -0 >p", after='env -0 >a; printf "%s" "$*" >arguments')
    hooks.run_before()
    hooks.run_after_peer(STAGED)
    failed = PeerResult(peer="db2", verdict=Verdict.FAILED, reason=Reason.NO_SPACE, error="Full.", exit=ExitCode.LOCAL)
    report = FleetReport.from_dict({**REPORT.to_dict(), "results": [STAGED.to_dict(), failed.to_dict()]})
    assert hooks.finish(report) == report
    common = {"RUN": "r1", "PLAN": "", "STAGING": "/srv/staging", "TARGET": TARGET, "DAY": "2026/11/23"}
    peer = {"PEER": "db1", "VERDICT": "staged", "REASON": "", "ERROR": "", "FLAGS": "smaller", "FILES": "3"}
    peer |= {"BYTES": "1000", "MARKED": "1", "IGNORED": "0", "EXIT": "0"}
    run = {"STAGED": "1", "INCOMPLETE": "0", "NOT_READY": "0", "FAILED": "1", "NOT_STARTED": "0", "PEERS": "2"}
    run |= {"FLAGGED": "1", "FILES": "3", "BYTES": "1000", "SECONDS": "0", "ENDED_BY": "", "REASON": "", "ERROR": ""}
    expected = {
        "b": {"HOOK": "before"},
        "p": {"HOOK": "after-peer", **peer},
        "a": {"HOOK": "after", **run, "EXIT": "6"},
    }
    for name, own in expected.items():
        found = {key: value for key, value in scripts.environment(name).items() if key.startswith("PEERSTAGE_")}
        assert found == {f"PEERSTAGE_{key}": value for key, value in {**common, **own}.items()}
    assert scripts.read("arguments") == "an argument"


def test_a_hostile_text_is_one_printable_line_of_bounded_length(scripts: Scripts) -> None:
    hooks = scripts.hooks(after_peer="env -0 >p", after="env -0 >a")
    error = HOSTILE + "x" * 200_000
    hooks.run_after_peer(PeerResult(peer="db1", verdict=Verdict.FAILED, error=error))
    hooks.finish(REPORT.with_error(error, Reason.LOCAL_FAILURE))
    for name in "pa":
        found = scripts.environment(name)["PEERSTAGE_ERROR"]
        assert found.startswith("x\\n\\x1b[2J\\u202ey\\x00z")
        assert found.isprintable()
        assert len(found) < 5000


def test_a_hook_gets_no_secret_of_the_plan_and_no_variable_of_another_run(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB1_PASSWORD", "secret")
    monkeypatch.setenv("PEERSTAGE_PEER", "of another run")
    monkeypatch.setenv("OTHER", "kept")
    scripts.hooks(before="env -0 >b", password=Secret(env="DB1_PASSWORD")).run_before()
    environment = scripts.environment("b")
    assert environment["OTHER"] == "kept"
    assert {"DB1_PASSWORD", "PEERSTAGE_PEER"}.isdisjoint(environment)


def test_a_hook_has_no_input(scripts: Scripts) -> None:
    scripts.hooks(before="cat >input; wc -c <input >count").run_before()
    assert scripts.read("count").strip() == "0"


def test_the_output_is_logged_line_by_line_and_bounded(scripts: Scripts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "peerstage")
    hooks = scripts.hooks(after_peer="echo one; echo two >&2; head -c 1000000 /dev/zero | tr '\\0' 'x'")
    hooks.run_after_peer(STAGED)
    assert hooks.finish(REPORT) is REPORT
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["after_peer db1: one", "after_peer db1: two"]
    assert sum(map(len, lines)) < 70_000
    assert "which are not logged" in lines[-1]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo first; echo no pool >&2; exit 3", "ended with status 3 and printed 'no pool'."),
        (r"printf 'a\033[2J\342\200\256b\n'; exit 3", r"ended with status 3 and printed 'a\x1b[2J\u202eb'."),
        ("kill -KILL $$", "was killed by signal 9."),
        ("exit 1", "ended with status 1."),
    ],
)
def test_a_failing_before_says_how_it_ended(scripts: Scripts, script: str, why: str) -> None:
    with pytest.raises(StageError) as caught:
        scripts.hooks(before=script).run_before()
    assert str(caught.value) == f"before: {scripts.directory}/before {why}"
    assert caught.value.reason is Reason.HOOK_FAILED


def test_a_missing_program_is_a_failure(tmp_path: Path) -> None:
    peer = PeerJob(name="db1", collect_dir="/collect", user="backup")
    plan = FleetPlan(staging="/srv", peers=(peer,), before=(str(tmp_path / "no\nne"),))
    with pytest.raises(StageError, match=r"before: .*no.*ne.* cannot be run: No such file") as caught:
        Hooks(plan, run="r", target="/t", day="d").run_before()
    assert caught.value.reason is Reason.HOOK_FAILED
    assert str(caught.value).isprintable()


def test_after_does_not_run_if_before_failed(scripts: Scripts) -> None:
    hooks = scripts.hooks(before="exit 1", after="touch ran")
    with pytest.raises(StageError) as caught:
        hooks.run_before()
    report = hooks.finish(REPORT.with_error(str(caught.value), caught.value.reason))
    assert report.exit is ExitCode.LOCAL
    assert not (scripts.directory / "ran").exists()


def test_failures_after_peers_and_after_the_run_are_told_in_the_report(scripts: Scripts) -> None:
    hooks = scripts.hooks(after_peer='test "$PEERSTAGE_PEER" = db3 || exit 4', after='echo "$PEERSTAGE_ERROR"; exit 5')
    for name in ("db1", "db2", "db3"):
        hooks.run_after_peer(PeerResult(peer=name, verdict=Verdict.STAGED))
    report = hooks.finish(REPORT)
    of_peers = f"after_peer failed for 2 peers; db1: after_peer: {scripts.directory}/after_peer ended with status 4."
    after = f"after: {scripts.directory}/after ended with status 5 and printed '{of_peers}'."
    assert report.error == f"{of_peers} {after}"
    assert (report.reason, report.exit) == (Reason.HOOK_FAILED, ExitCode.LOCAL)


def test_an_earlier_error_of_the_run_keeps_its_reason(scripts: Scripts) -> None:
    report = scripts.hooks(after="exit 1").finish(REPORT.with_error("The pool is gone.", Reason.TARGET_MISSING))
    assert report.error is not None
    assert report.error.startswith("The pool is gone. after: ")
    assert report.reason is Reason.TARGET_MISSING


def test_peers_that_were_not_asked_have_no_hook(scripts: Scripts) -> None:
    hooks = scripts.hooks(after_peer='echo "$PEERSTAGE_PEER" >>peers')
    hooks.run_after_peer(PeerResult(peer="db1", verdict=Verdict.NOT_STARTED))
    hooks.run_after_peer(PeerResult(peer="db2", verdict=Verdict.STAGED, earlier_run="r0"))
    hooks.run_after_peer(PeerResult(peer="db3", verdict=Verdict.NOT_READY))
    hooks.finish(REPORT)
    assert scripts.read("peers") == "db3\n"


def test_hooks_of_peers_run_one_at_a_time_in_order_and_before_after(scripts: Scripts) -> None:
    begin_and_end = 'echo "begin $PEERSTAGE_PEER" >>log; echo "end $PEERSTAGE_PEER" >>log'
    hooks = scripts.hooks(after_peer=begin_and_end, after="echo after >>log")
    for name in ("db1", "db2", "db3"):
        hooks.run_after_peer(PeerResult(peer=name, verdict=Verdict.STAGED))
    hooks.finish(REPORT)
    expected = [f"{what} {name}" for name in ("db1", "db2", "db3") for what in ("begin", "end")]
    assert scripts.read("log").splitlines() == [*expected, "after"]


#: A hook with a child in its group, which ignores SIGTERM as its parent does.
STUBBORN = "trap '' TERM; sleep 600 & echo $! >child.new; mv child.new child; wait; sleep 600"


def child_of(scripts: Scripts) -> int:
    wait_until((scripts.directory / "child").exists)
    return int(scripts.read("child"))


@pytest.mark.usefixtures("patience")
def test_a_hook_that_takes_too_long_is_killed_with_its_children(scripts: Scripts) -> None:
    with pytest.raises(StageError, match=r"did not end within 0\.2 s .* and was killed") as caught:
        scripts.hooks(hook_timeout=0.2, before=STUBBORN).run_before()
    assert caught.value.reason is Reason.HOOK_FAILED
    assert exits_within(child_of(scripts))


def test_what_a_hook_leaves_in_the_background_is_killed(scripts: Scripts) -> None:
    scripts.hooks(before="sleep 600 & echo $! >child").run_before()
    assert exits_within(child_of(scripts))


def in_a_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_cancelling_ends_before(scripts: Scripts) -> None:
    hooks = scripts.hooks(before="sleep 600 & echo $! >child.new; mv child.new child; wait", after="touch ran")
    canceller = in_a_thread(lambda: (child_of(scripts), hooks.cancel()))
    with pytest.raises(Cancelled):
        hooks.run_before()
    canceller.join()
    assert exits_within(child_of(scripts))
    hooks.finish(REPORT)
    assert not (scripts.directory / "ran").exists()


def test_cancelling_ends_the_hook_of_a_peer_and_starts_no_other_but_after(scripts: Scripts) -> None:
    hooks = scripts.hooks(
        after_peer='echo "$PEERSTAGE_PEER" >>peers; sleep 600 & echo $! >child.new; mv child.new child; wait',
        after="echo $PEERSTAGE_ENDED_BY >after-ran",
    )
    for name in ("db1", "db2"):
        hooks.run_after_peer(PeerResult(peer=name, verdict=Verdict.STAGED))
    child = child_of(scripts)
    hooks.cancel()
    report = hooks.finish(FleetReport.from_dict({**REPORT.to_dict(), "ended_by": "signal"}))
    assert report.error is None
    assert exits_within(child)
    assert scripts.read("peers") == "db1\n"
    assert scripts.read("after-ran") == "signal\n"


def test_a_cancelled_run_starts_no_before(scripts: Scripts) -> None:
    hooks = scripts.hooks(before="touch ran")
    hooks.cancel()
    with pytest.raises(Cancelled):
        hooks.run_before()
    assert not (scripts.directory / "ran").exists()


def test_cancelling_ends_after(scripts: Scripts) -> None:
    hooks = scripts.hooks(after="sleep 600 & echo $! >child.new; mv child.new child; wait")
    canceller = in_a_thread(lambda: (child_of(scripts), hooks.cancel()))
    assert hooks.finish(REPORT).error is None
    canceller.join()
    assert exits_within(child_of(scripts))


@pytest.mark.usefixtures("patience")
def test_after_has_little_time_once_the_run_is_cancelled(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstage.fleet.hooks._SECONDS_AFTER_CANCEL", 0.2)
    hooks = scripts.hooks(after="exec sleep 600")
    hooks.cancel()
    report = hooks.finish(REPORT)
    assert report.error is not None
    assert "did not end within 0.2 s" in report.error


def test_a_hook_can_end_itself_on_sigterm_before_it_is_killed(scripts: Scripts) -> None:
    hooks = scripts.hooks(before="trap 'touch cleaned; exit 0' TERM; touch child; while :; do sleep 0.01; done")
    canceller = in_a_thread(lambda: (wait_until((scripts.directory / "child").exists), hooks.cancel()))
    with pytest.raises(Cancelled):
        hooks.run_before()
    canceller.join()
    assert (scripts.directory / "cleaned").exists()
