"""The next step for a peer that was not staged as it should be: a command, or what to do about it in words.

Nothing that a peer sends becomes a part of a command: names of the plan alone do, and they are valid host names.
"""

from __future__ import annotations

import re
import shlex

from peerstage.exit_codes import CODES, ExitCode
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.plan_file import DEFAULT_PLAN
from peerstage.fleet.results import Flag, PeerResult, Verdict
from peerstage.reasons import Reason
from peerstage.ssh.options import SSHOptions

#: Names of entries that can be quoted in advice as they are: no pattern, no quote, nothing that needs escaping.
_PLAIN_NAME = re.compile(r"[\w.+@%-]{1,100}", re.ASCII)
#: Reasons of entries that will fail every night.
_UNWANTED = frozenset(
    {Reason.NOT_A_FILE, Reason.INVALID_NAME, Reason.NAME_NOT_REPRESENTABLE, Reason.NAME_COLLISION}
    | {Reason.NAME_RESERVED, Reason.FILE_TOO_LARGE}
)
#: Failures of a connection that the doctor would not meet: it transfers no file.
_TRANSIENT = frozenset({Reason.CANCELLED, Reason.CONNECTION_LOST, Reason.TOO_SLOW, Reason.DEADLINE_PASSED})


def next_step(result: PeerResult, job: PeerJob, plan: FleetPlan) -> str | None:
    """Return the next step for *result*; None if no action is needed, as for an ignored peer.

    Args:
        result: The result, whose `next` does not count.
        job: The peer in the plan.
        plan: The plan; commands name its file unless it is the default one.
    """
    if result.ignored:
        return None
    if result.verdict is Verdict.STAGED:
        return _of_staged(result)
    if result.verdict is Verdict.NOT_STARTED:
        return _command(plan, job, "run")
    if result.reason is Reason.INCOMPLETE_STAGE:
        return _of_incomplete(result, _command(plan, job, "run"))
    if result.reason in _STEPS:
        return _STEPS[result.reason].format(
            trust=_command(plan, job, "trust"),
            run=_command(plan, job, "run"),
            check=_command(plan, job, "check"),
            name=result.peer,
        )
    code = ExitCode.UNEXPECTED if result.reason is None else CODES[result.reason]
    if code is ExitCode.UNREACHED and result.reason not in _TRANSIENT:
        return _doctor(plan, job)
    return _AFTERWARDS.get(code, "{run}").format(run=_command(plan, job, "run"))


def _of_staged(result: PeerResult) -> str | None:
    if Flag.SMALLER in result.flags:
        return f"see what it collects; if this is right, lower min_bytes of {result.peer}"
    return None


def _doctor(plan: FleetPlan, job: PeerJob) -> str:
    """Return the command for a peer that cannot be reached; `doctor` has nothing to check without SSH."""
    if job.is_local or job.transport == "rcp":
        return _command(plan, job, "check")
    return _command(plan, job, "doctor")


def _command(plan: FleetPlan, job: PeerJob, verb: str) -> str:
    """Return the command ``peerstage VERB`` for a peer; without a plan file, advice that needs none."""
    if plan.source is not None:
        option = "" if plan.source == DEFAULT_PLAN else f" --plan {shlex.quote(plan.source)}"
        return f"peerstage {verb} {job.name}{option}"
    if verb == "run":
        return "run it again"
    is_plain = job.ssh == SSHOptions() and job.local_user is None and job.transport in ("auto", "sftp")
    if not is_plain:
        return "peerstage guide troubleshooting"
    host = job.host or job.name
    return f"peerstage {verb} {shlex.quote(host if verb == 'trust' else f'{job.user}@{host}:{job.collect_dir}')}"


def _of_incomplete(result: PeerResult, run: str) -> str:
    """Return what to do about entries that could not be staged."""
    report = result.report
    failures = () if report is None else report.failures
    if report is None or not {failure.reason for failure in failures} <= _UNWANTED:
        return f"{run}; if that fails too, peerstage guide troubleshooting"
    names = [f'"{failure.name}"' for failure in failures if _PLAIN_NAME.fullmatch(failure.name)]
    are_all = 0 < len(names) == report.failed <= 3
    return f"remove what cannot be staged on the peer, or add {', '.join(names) if are_all else 'it'} to exclude"


#: Steps by reason, where the doctor is not the best one.
_STEPS: dict[Reason | None, str] = {
    Reason.HOST_KEY_UNKNOWN: "{trust}",
    Reason.NOT_READY: "see why its job has not finished; `{check}` asks again",
    Reason.STALE: "see why its job has not run again; to stage what is there, {run} --again",
    Reason.NOTHING_TO_STAGE: "see why it collected nothing; if this is right, set allow_empty = true for {name}",
    Reason.POOL_NOT_VISIBLE: "correct that on the worker; then {run}",
    Reason.WORKER_LOST: "see the worker's log; then {run}",
    Reason.NO_SPACE: "free space on this machine; then {run}",
}
#: Steps by exit code: the error says what to correct.
_AFTERWARDS: dict[ExitCode, str] = {
    ExitCode.USAGE: "correct that; then {run}",
    ExitCode.LOCAL: "correct that on this machine; then {run}",
    ExitCode.NOT_AVAILABLE: "install that; then {run}",
    ExitCode.UNEXPECTED: "{run} --verbose",
}
