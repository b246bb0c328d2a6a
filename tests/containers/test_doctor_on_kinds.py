"""The doctor on every kind of peer: what works passes, in the steps of its transport."""

from __future__ import annotations

import contextlib

from kinds import KINDS, UNSUPPORTED, WITHOUT_RCP, Scenario, run_on

from peerstage.cli.access import Access, TransportChoice
from peerstage.cli.arguments import PeerSpec
from peerstage.cli.checks import PeerChecks
from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.doctor_results import DoctorResult, StepResult
from peerstage.exit_codes import ExitCode
from peerstage.records import Limits
from peerstage.stage_options import StageOptions
from peerstage.watchdog import Watchdog
from support.containers import BenchPeer, FileTree

#: A guarded peer can be staged without `guarded`; so the doctor must pass it without `--transport guarded`.
_GUARDED_AS_AUTO = [Scenario(kind, "auto") for kind in KINDS if "guarded" in kind.transports]


@run_on([*WITHOUT_RCP, *_GUARDED_AS_AUTO])
def test_doctor_finds_only_what_the_table_says(scenario: Scenario, bench_peer: BenchPeer) -> None:
    bench_peer.container.fill(FileTree(**{"cback.collect": b"", "data": b"x" * 100}))
    steps: list[StepResult] = []
    spec = PeerSpec(bench_peer.user, bench_peer.host, None, bench_peer.collect)
    access = Access(ssh=bench_peer.options(), limits=Limits(), transport=TransportChoice(scenario.transport))
    watchdog = Watchdog(access.limits)
    with contextlib.closing(watchdog):
        diagnosis = Diagnosis(spec.host, spec.user, access.ssh, watchdog, bench_peer.collect)
        PeerChecks(access.transport_options(spec), diagnosis, b"cback.collect", StageOptions(), steps.append).run()
    status = DoctorResult(peer=spec, steps=steps).exit
    failed = [step.step for step in steps if step.state == "failed"]
    if (scenario.kind.name, "mark") in UNSUPPORTED:
        assert (failed, status) == (["write"], ExitCode.UNREACHED)
    else:
        assert (failed, status) == ([], ExitCode.DONE)
    assert steps[-1].step == "write"
    (files,) = (step for step in steps if step.step == "files")
    sends_what_it_opens = (scenario.kind.name, scenario.transport) == ("proftpd", "scp")
    assert files.state == ("skipped" if sends_what_it_opens else "ok")
    assert sends_what_it_opens or files.seen == "2 of 2 files were opened on the peer"
    assert ("jump host" in [step.step for step in steps]) is bool(bench_peer.hops)
