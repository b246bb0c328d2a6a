"""What ``run`` prints at its end, from reports."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from peerstage.cli.output import PlainOutput
from peerstage.cli.run_results import RunSummary, format_seconds, make_strict
from peerstage.exit_codes import ExitCode
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.results import Flag, FleetReport, PeerResult, StageSummary, Verdict
from peerstage.reasons import Reason

NAMES = ("db1", "db2", "web1", "mirror", "legacy", "laptop")
TARGET = "/srv/staging/2026/11/23"
PLAN = FleetPlan(
    staging="/srv/staging",
    peers=tuple(PeerJob(name=name, collect_dir="/collect", user="backup") for name in NAMES),
    source="/etc/peerstage/plan.toml",
)


def staged(name: str, **changes: Any) -> PeerResult:
    summary = StageSummary(transport="sftp", target=f"{TARGET}/{name}", files=12, bytes=4_200_000_000)
    changes = {"marked": True, "seconds": 41.2, "report": summary, **changes}
    return PeerResult(peer=name, verdict=Verdict.STAGED, **changes)


def failed(name: str, **changes: Any) -> PeerResult:
    changes = {
        "reason": Reason.CONNECT_TIMEOUT,
        "error": "10.0.0.11:22 timed out, 4 attempts. Check that it is up.",
        **changes,
    }
    return PeerResult(
        peer=name,
        **{"verdict": Verdict.FAILED, "exit": ExitCode.UNREACHED, "next": f"peerstage doctor {name}", **changes},
    )


def report_of(*results: PeerResult, **changes: Any) -> FleetReport:
    values = {"run": "r1", "plan": PLAN.source, "staging": PLAN.staging, "target": TARGET, "day": "2026/11/23"}
    return FleetReport(**{**values, "started": 0.0, "seconds": 9900.0, "results": results, **changes})


def printed(
    capsys: pytest.CaptureFixture[str], report: FleetReport, plan: FleetPlan = PLAN, *, quiet: bool = False
) -> str:
    PlainOutput().show(RunSummary(report=report, plan=plan, is_quiet=quiet))
    return capsys.readouterr().out


EVERYTHING = report_of(
    staged("db1"),
    staged("db2", flags=(Flag.SMALLER,), next="see what it collects"),
    failed("web1"),
    staged("mirror", marked=False, report=StageSummary(transport="sftp", target="", files=1, bytes=9, linked=1)),
    failed(
        "legacy",
        verdict=Verdict.INCOMPLETE,
        reason=Reason.INCOMPLETE_STAGE,
        error='"old" is a directory.',
        exit=ExitCode.INCOMPLETE,
        next='add "old" to exclude',
        report=StageSummary(transport="scp", target="", files=412, bytes=702_000_000, failed=1),
    ),
    failed(
        "laptop",
        verdict=Verdict.NOT_READY,
        reason=Reason.NOT_READY,
        error="cback.collect does not exist.",
        exit=ExitCode.NOT_READY,
        next=None,
        ignored=True,
    ),
)


def test_what_needs_action_comes_first_and_the_totals_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, EVERYTHING).splitlines() == [
        "",
        "failed      web1    10.0.0.11:22 timed out, 4 attempts  [connect-timeout]",
        "                    next: peerstage doctor web1",
        'incomplete  legacy  412 files staged; "old" is a directory; not marked  [incomplete-stage]',
        '                    next: add "old" to exclude',
        "suspect     db2     staged, but only 12 files, 4.2 GB [smaller]",
        "                    next: see what it collects",
        "not ready   laptop  cback.collect does not exist  [not-ready] (ignored)",
        "staged      db1     12 files, 4.2 GB, 41 s",
        "staged      mirror  1 file (1 linked), 9 bytes, 41 s",
        "",
        "6 peers: 1 failed, 1 incomplete, 1 suspect, 1 not ready, 2 staged",
        "437 files, 9.1 GB, 2 h 45 min. Exit code 5.",
        "Run it again safely: only what is missing is fetched.",
    ]


def test_quiet_prints_the_verdict_first_and_only_the_rows_on_which_somebody_has_to_act(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys, EVERYTHING, quiet=True).splitlines()
    counts = "6 peers: 1 failed, 1 incomplete, 1 suspect, 1 not ready, 2 staged"
    assert lines[:2] == [f"{counts} -> {TARGET}", ""]
    states = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert states == ["failed", "incomplete", "suspect", "Run"]
    assert not any("laptop" in line or "mirror" in line for line in lines)


@pytest.mark.parametrize(
    "results",
    [
        [staged("db1"), staged("db2", earlier_run="r0")],
        [staged("db1"), failed("laptop", ignored=True)],
    ],
)
def test_quiet_is_silent_if_nobody_has_to_act(capsys: pytest.CaptureFixture[str], results: list[PeerResult]) -> None:
    assert printed(capsys, report_of(*results), quiet=True) == ""


@pytest.mark.parametrize(
    "changes", [{"error": "after: exit status 1.", "reason": Reason.HOOK_FAILED}, {"ended_by": "signal"}]
)
def test_quiet_is_not_silent_if_the_run_itself_failed(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    assert printed(capsys, report_of(staged("db1"), **changes), quiet=True).startswith("1 peer: 1 staged -> ")


def test_a_run_that_staged_everything_does_not_advise_to_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, report_of(staged("db1"), staged("db2", earlier_run="r0")))
    assert "by an earlier run" in text
    assert text.endswith("2 peers: 2 staged\n12 files, 4.2 GB, 2 h 45 min. Exit code 0.\n")


def test_the_advice_is_true_for_peers_whose_files_are_all_fetched_again(capsys: pytest.CaptureFixture[str]) -> None:
    guarded = dataclasses.replace(PLAN.peers[4], transport="guarded")
    plan = dataclasses.replace(PLAN, peers=(*PLAN.peers[:4], guarded, PLAN.peers[5]))
    text = printed(capsys, EVERYTHING, plan)
    assert text.endswith("Run it again safely: peers that are staged are not asked again.\n")


@pytest.mark.parametrize(
    ("result", "advice"),
    [
        (PeerResult(peer="db2", verdict=Verdict.NOT_STARTED, reason=Reason.CANCELLED), "Run it again with --again: "),
        (failed("db2"), "Run it again safely: "),
    ],
)
def test_the_advice_is_true_for_peers_that_were_to_be_staged_again(
    capsys: pytest.CaptureFixture[str], result: PeerResult, advice: str
) -> None:
    report = report_of(staged("db1"), result, ended_by="signal")
    PlainOutput().show(RunSummary(report=report, plan=PLAN, is_again=True))
    assert capsys.readouterr().out.splitlines()[-1].startswith(advice)


def test_a_single_byte_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    summary = StageSummary(transport="sftp", target="", files=1, bytes=1)
    assert "1 file, 1 byte, " in printed(capsys, report_of(staged("db1", report=summary)))


def test_an_error_of_this_machine_keeps_its_advice(capsys: pytest.CaptureFixture[str]) -> None:
    error = "The disk is full. Files of failed runs take 3 GB; they may be deleted."
    text = printed(capsys, report_of(failed("db1", reason=Reason.NO_SPACE, error=error, exit=ExitCode.LOCAL)))
    assert f"{error[:-1]}  [no-space]" in text


def test_a_cancelled_peer_needs_no_step_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    cancelled = failed("db1", reason=Reason.CANCELLED, error="Cancelled.", next="peerstage run db1")
    text = printed(capsys, report_of(cancelled, ended_by="signal"))
    assert "next:" not in text
    assert "Run it again safely" in text


def test_peers_that_were_not_started_share_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    left = [PeerResult(peer=f"web{number}", verdict=Verdict.NOT_STARTED, next="run it again") for number in range(9)]
    lines = printed(capsys, report_of(staged("db1"), *left, ended_by="signal")).splitlines()
    assert "not started 9 peers  web0, web1, web2, web3, web4 and 4 more" in lines
    assert lines[-2].endswith("Ended by a signal.")


def test_a_hostile_text_cannot_forge_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = failed("db1", error="x\nstaged      db1\x1b[2J", next="y\nz")
    lines = printed(capsys, report_of(hostile)).splitlines()
    assert all(line.isprintable() for line in lines)
    assert "staged      db1" not in lines


def test_strict_gives_flagged_peers_the_exit_code_of_incomplete_ones() -> None:
    assert make_strict(staged("db1")).exit is ExitCode.DONE
    assert make_strict(staged("db1", flags=(Flag.SMALLER,))).exit is ExitCode.INCOMPLETE
    assert make_strict(failed("db1", exit=ExitCode.LOCAL, flags=(Flag.EMPTY,))).exit is ExitCode.LOCAL


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (7200, "2 h"),
        (9900, "2 h 45 min"),
        (86_400, "1 d"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
