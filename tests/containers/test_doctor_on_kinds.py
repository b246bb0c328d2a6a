"""The doctor on every kind of peer: what works is found well, by the steps that its transport has."""

from __future__ import annotations

import contextlib

from kinds import CAN_NOT, KINDS, ON_OUR_OWN, Way, each

from peerstage.cli.access import Access
from peerstage.cli.examine import Examination
from peerstage.cli.exits import Exit
from peerstage.cli.results import Finding
from peerstage.cli.spec import Spec
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from support.containers import BenchPeer, Files

#: A guarded peer is staged without being told that it is; so nothing else is to be told the doctor.
_UNTOLD = [Way(kind, "auto") for kind in KINDS if "guarded" in kind.transports]


@each([*ON_OUR_OWN, *_UNTOLD])
def test_a_kind_is_as_well_as_the_table_says(way: Way, served: BenchPeer) -> None:
    served.container.fill(Files(**{"cback.collect": b"", "data": b"x" * 100}))
    found: list[Finding] = []
    access = Access(ssh=served.options(), limits=Limits(), transport=way.transport)
    watchdog = Watchdog(access.limits)
    with contextlib.closing(watchdog):
        spec = Spec(served.user, served.host, served.collect)
        status = Examination(spec, access, b"cback.collect", watchdog, found.append).run()
    ill = [one.step for one in found if one.state == "failed"]
    if (way.kind.name, "mark") in CAN_NOT:
        assert (ill, status) == (["write"], Exit.UNREACHED)
    else:
        assert (ill, status) == ([], Exit.DONE)
    assert found[-1].step == "write"
    (files,) = (one for one in found if one.step == "files")
    sends_what_it_opens = (way.kind.name, way.transport) == ("proftpd", "scp")
    assert files.state == ("skipped" if sends_what_it_opens else "ok")
    assert sends_what_it_opens or files.seen == "2 of 2 files were opened on the peer"
    assert ("jump host" in [one.step for one in found]) is bool(served.hops)
