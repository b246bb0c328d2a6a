"""cback3 stages as root for a backup user, by itself and through peerstage: the same tree, the same indicators.

Everything runs in a container that is a site's master, by the line of root's crontab, in cron's environment.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from master_container import CONFIG, STAGING, CronRun, MasterContainer, PeerEntry, TreeEntry, read_tree

from support.containers import COLLECT, UID, Bench, Container, FileTree
from support.guide_blocks import (
    CBACK3_BIN,
    CBACK3_EXTENSION,
    CBACK3_REMOVAL,
    CRONTAB_LINE,
    NIGHTLY_PEERS,
    NIGHTLY_SCRIPT,
)

pytestmark = pytest.mark.kind("master", "openssh92", "openssh100", "scp-only", "guard")

#: What cron runs: the crontab line after its five time fields.
LINE = CRONTAB_LINE.split(maxsplit=5)[5]

PEERS = ("openssh92", "openssh100", "scp-only", "guard")
ALIASES = "".join(
    f"Host {mode}\n  HostName openssh92\n  HostKeyAlias openssh92\n"
    for mode in ("none", "all", "daily", "weekly", "unsaid")
)

FILES = FileTree(**{"cback.collect": b"", "data.tar.gz": bytes(range(256)) * 5000, "empty": b""})
FILES.add_file("private", b"p", 0o600).add_file("program", b"#!/bin/sh\n", 0o755).add_file("open to all", b"o", 0o666)
FILES.add_file("set-id", b"s", 0o6755).add_file(".hidden", b"h").add_file(b"\xff not utf-8", b"n").add_link(
    "link", "private"
)


@pytest.fixture(scope="module", autouse=True)
def trusted(master: MasterContainer) -> None:
    master.trust_hosts(PEERS, ALIASES)


@pytest.fixture(autouse=True)
def clean(master: MasterContainer) -> None:
    master.remove(STAGING, "/srv/staging2", "/srv/local")


@pytest.fixture
def both(master: MasterContainer, bench: Bench) -> Callable[..., tuple[CronRun, CronRun]]:
    """Stages twice, by cback3 and through peerstage, from equal peers, and compares the results."""

    def run(
        peers: list[PeerEntry], *, line: str = LINE, day: str = "monday", settings: str = "", **filled: FileTree
    ) -> tuple[CronRun, CronRun]:
        ran, left = [], []
        for ours in (False, True):
            for name, files in filled.items():
                bench.container(name.replace("_", "-")).fill(files, empty_first=True)
            master.remove(STAGING, "/srv/local")
            master.run_script("mkdir -p /srv/local; cd /srv/local; touch cback.collect .dot; echo local >'a file'")
            master.configure(peers, ours=ours, day=day, settings=settings)
            ran.append(master.run_as_cron(line))
            assert ran[-1].status == 0, ran[-1]
            trees = {"staging": master.tree(STAGING), "local": master.tree("/srv/local")}
            trees |= {name: collected(bench.container(name)) for name in PEERS}
            left.append({(place, path): found for place, tree in trees.items() for path, found in tree.items()})
        assert different(*left) == {}
        return ran[0], ran[1]

    return run


def different(theirs: dict[Any, Any], ours: dict[Any, Any]) -> dict[Any, tuple[Any, Any]]:
    """Return what differs, by key."""
    keys = theirs.keys() | ours.keys()
    return {key: (theirs.get(key), ours.get(key)) for key in sorted(keys) if theirs.get(key) != ours.get(key)}


def collected(container: Container) -> dict[str, TreeEntry]:
    """Return the entries of a peer's collect directory."""
    return read_tree(io.BytesIO(container.execute("tar", "-c", "-C", COLLECT, "--numeric-owner", "--format=gnu", ".")))


def today() -> str:
    return time.strftime("%Y/%m/%d", time.gmtime())


#: For peers without SFTP, which the master's own scp would use.
LEGACY = "<rcp_command>/usr/bin/scp -O -B -q</rcp_command>"
LOCAL = PeerEntry("here", "/srv/local", "local")


def test_a_full_stage_leaves_the_same_tree(
    both: Callable[..., tuple[CronRun, CronRun]], master: MasterContainer, bench: Bench
) -> None:
    peers = [PeerEntry("openssh92"), LOCAL, PeerEntry("scp-only", more=f"<backup_user>backup</backup_user>{LEGACY}")]
    theirs, ours = both(peers, openssh92=FILES, scp_only=FILES)
    assert (ours.status, ours.output) == (theirs.status, theirs.output) == (0, "")
    tree = master.tree(STAGING)
    assert tree[f"./{today()}/openssh92/data.tar.gz"].data == bytes(range(256)) * 5000
    assert tree[f"./{today()}/openssh92/private"] == TreeEntry("b'0'", 0o600, (UID, UID), b"p")
    assert f"./{today()}/openssh92/.hidden" not in tree
    assert f"./{today()}/here/.dot" in tree
    assert tree[f"./{today()}/cback.stage"].owner == (UID, UID)
    assert "./cback.stage" in collected(bench.container("openssh92"))


def test_other_peers_are_staged_if_one_is_down_and_one_is_not_ready(
    both: Callable[..., tuple[CronRun, CronRun]], master: MasterContainer
) -> None:
    peers = [PeerEntry("gone.invalid"), PeerEntry("openssh100"), LOCAL, PeerEntry("openssh92")]
    theirs, ours = both(peers, openssh92=FILES, openssh100=FileTree(a=b"a"))
    assert theirs.status == ours.status == 0
    missing = {"gone.invalid": "ERROR", "openssh100": "ERROR"}
    assert ours.levels("was not ready") == theirs.levels("was not ready") == missing
    assert len(re.findall("not ready", ours.output)) == len(re.findall("not ready", theirs.output)) == 2
    assert f"./{today()}/openssh100" in master.tree(STAGING)
    assert f"./{today()}/openssh100/a" not in master.tree(STAGING)


def test_unstageable_entry_is_an_error_of_its_peer(both: Callable[..., tuple[CronRun, CronRun]]) -> None:
    files = FileTree(a=b"a", **{"cback.collect": b""}).add_directory("sub")
    theirs, ours = both([PeerEntry("openssh92"), PeerEntry("openssh100")], openssh92=files, openssh100=FILES)
    assert theirs.status == ours.status == 0
    for ran in (theirs, ours):
        assert [level for level, text in ran.log if "Error staging" in text] == ["ERROR"]


@pytest.mark.parametrize(
    ("full", "first_day"),
    [(False, False), (False, True), (True, False)],
    ids=["in the week", "first day", "full"],
)
def test_ignored_failures_are_those_that_cback3_ignores(
    both: Callable[..., tuple[CronRun, CronRun]], full: bool, first_day: bool
) -> None:
    modes = {"none": "none", "all": "all", "daily": "daily", "weekly": "weekly", "unsaid": None}
    peers = [PeerEntry(name, ignore=mode) for name, mode in modes.items()]
    peers += [PeerEntry(f"{name}.invalid", ignore=modes[name]) for name in ("daily", "weekly")]
    peers += [PeerEntry(f"{name}-here", "/srv/no-such", "local", ignore=mode) for name, mode in modes.items()]
    day = time.strftime("%A", time.gmtime(time.time() + (0 if first_day else 86400))).lower()
    line = f"{LINE.removesuffix('stage')}{'--full ' if full else ''}stage"
    theirs, ours = both(peers, line=line, day=day, openssh92=FileTree(a=b"a"))
    levels = ours.levels("was not ready")
    assert levels == theirs.levels("was not ready")
    assert len(levels) == 12
    assert {levels[name] for name in ("daily", "daily.invalid", "daily-here")} == {
        "ERROR" if full or first_day else "INFO"
    }
    assert sorted(re.findall(r"[Pp]eer \[?([\w.-]+)", ours.output)) == sorted(
        re.findall(r"[Pp]eer \[?([\w.-]+)", theirs.output)
    )


def test_guarded_peer_is_staged_by_the_three_commands_of_the_original(
    both: Callable[..., tuple[CronRun, CronRun]], master: MasterContainer, bench: Bench
) -> None:
    guard = bench.container("guard")
    guard.execute("truncate", "-s", "0", "/var/log/guard")
    peer = PeerEntry("guard", more=LEGACY)
    plain = FileTree(a=b"a", b=b"b", **{"cback.collect": b""})
    theirs, ours = both([peer], settings="[peer guard]\ntransport = guarded\n", guard=plain)
    assert (theirs.output, ours.output) == ("", "")
    asked = guard.execute("cat", "/var/log/guard").decode().splitlines()
    assert asked[3:] == asked[:3]
    assert len(asked) == 6


def test_crontab_line_stages_twice_and_sweeps_after_a_killed_run(master: MasterContainer, bench: Bench) -> None:
    old = f"{STAGING}/2020/01/01/openssh92/.peerstage-abcdef01"
    master.run_script(f"mkdir -p {old}; touch {old}/lock {old}/0000")
    master.configure([PeerEntry("openssh92")], ours=True)
    for number in (b"1", b"2"):
        bench.container("openssh92").fill(FileTree(a=number, **{"cback.collect": b""}), empty_first=True)
        ran = master.run_as_cron(LINE)
        assert (ran.status, ran.output) == (0, "")
        tree = master.tree(STAGING)
        assert tree[f"./{today()}/openssh92/a"] == TreeEntry("b'0'", 0o644, (UID, UID), number)
        assert "./cback.stage" in collected(bench.container("openssh92"))
        assert not any(".peerstage-" in path for path in tree)


def test_cback3_all_collects_and_stages_through_peerstage(master: MasterContainer, bench: Bench) -> None:
    bench.container("openssh92").fill(FileTree(a=b"a", **{"cback.collect": b""}), empty_first=True)
    collect = (
        "<collect><collect_dir>/srv/local</collect_dir><collect_mode>daily</collect_mode><archive_mode>tar</archive_mode>"
        "<ignore_file>.ignore</ignore_file><dir><abs_path>/etc/default</abs_path></dir></collect>"
    )
    master.run_script("mkdir -p /srv/local")
    master.configure([LOCAL, PeerEntry("openssh92")], ours=True, more=collect)
    ran = master.run_as_cron(f"{CBACK3_BIN}/cback3 --debug all")
    called = [text.split("[")[1].split("]")[0] for _, text in ran.log if text.startswith("Calling action function")]
    assert called[:2] == ["CedarBackup3.actions.collect.executeCollect", "peerstage.cback3.executeAction"]
    tree = master.tree(STAGING)
    assert {f"./{today()}/here/etc-default.tar", f"./{today()}/openssh92/a"} <= tree.keys()


def test_nightly_script_of_the_guide_stages_twice(master: MasterContainer, bench: Bench) -> None:
    assert NIGHTLY_PEERS in NIGHTLY_SCRIPT
    script = NIGHTLY_SCRIPT.replace(NIGHTLY_PEERS, '["openssh92"]')
    master.write("/usr/local/sbin/stage-openssh92", f"#!{CBACK3_BIN}/python\n{script}", 0o755)
    for number in (b"1", b"2"):
        bench.container("openssh92").fill(FileTree(a=number, **{"cback.collect": b""}), empty_first=True)
        ran = master.run_as_cron("/usr/local/sbin/stage-openssh92")
        assert (ran.status, ran.output) == (0, "")
        assert master.tree(STAGING)[f"./{today()}/openssh92/a"] == TreeEntry("b'0'", 0o644, (UID, UID), number)
        assert "./cback.stage" in collected(bench.container("openssh92"))


def test_owner_of_staged_files_cannot_redirect_writes_of_root(master: MasterContainer, bench: Bench) -> None:
    master.run_script("rm -rf /srv/elsewhere; mkdir -m 755 /srv/elsewhere; touch /srv/elsewhere/cback.stage")
    before = master.tree("/srv/elsewhere")
    day, month = today(), today().rpartition("/")[0]
    planted = {
        f"{STAGING}/{month}": f"mkdir -p {STAGING}/{month.rpartition('/')[0]}; ln -s /srv/elsewhere {STAGING}/{month}",
        f"{STAGING}/{day}/openssh92": f"mkdir -p {STAGING}/{day}; ln -s /srv/elsewhere {STAGING}/{day}/openssh92",
        f"{STAGING}/{day}/cback.stage": f"mkdir -p {STAGING}/{day}; cd {STAGING}/{day}; ln -s /srv/elsewhere/* .",
    }
    master.configure([PeerEntry("openssh92")], ours=True)
    for path, script in planted.items():
        master.remove(STAGING)
        master.run_script(script)
        bench.container("openssh92").fill(FileTree(a=b"a", **{"cback.collect": b""}), empty_first=True)
        ran = master.run_as_cron(LINE)
        assert ran.status == 6
        assert path in ran.output
        assert master.tree("/srv/elsewhere") == before


def test_parallel_peers_leave_the_same_tree_and_an_ordered_log(master: MasterContainer, bench: Bench) -> None:
    peers = [PeerEntry("gone.invalid"), LOCAL, PeerEntry("openssh92"), PeerEntry("openssh100"), PeerEntry("scp-only")]
    trees, logs = [], []
    for parallel in (1, 4):
        master.remove(STAGING, "/srv/local")
        master.run_script("mkdir -p /srv/local; touch /srv/local/cback.collect")
        for name in ("openssh92", "openssh100", "scp-only"):
            bench.container(name).fill(FILES, empty_first=True)
        master.configure(peers, ours=True, settings=f"[stage]\nparallel = {parallel}\n")
        ran = master.run_as_cron(LINE)
        trees.append(master.tree(STAGING))
        logs.append([re.sub(r"[\d.]+ s\.", "", text) for _, text in ran.log if "taged" in text or "taging" in text])
    assert trees[0] == trees[1]
    assert logs[0] == logs[1]


def test_rcp_command_of_cback3_runs_only_if_our_file_says_so(master: MasterContainer, bench: Bench) -> None:
    bench.container("openssh92").fill(FileTree(a=b"a", **{"cback.collect": b""}), empty_first=True)
    script = '#!/bin/sh\nid -un >>/var/lib/cback3/ran\nexec /usr/bin/scp "$@"\n'
    master.write("/usr/local/bin/rcp", script, 0o755)
    peer = PeerEntry("openssh92", more="<rcp_command>/usr/local/bin/rcp -B -q</rcp_command>")
    for settings, times in (("", 0), ("[stage]\ntransport = rcp\n", 3)):
        master.run_script("rm -f /var/lib/cback3/ran")
        master.configure([peer], ours=True, settings=settings)
        ran = master.run_as_cron(LINE)
        assert ran.output == ""
        assert master.run_script("cat /var/lib/cback3/ran 2>/dev/null || true").decode().split() == ["backup"] * times
        assert master.tree(STAGING)[f"./{today()}/openssh92/a"].owner == (UID, UID)


def test_mistake_in_our_file_is_one_line_and_nothing_is_staged(master: MasterContainer) -> None:
    master.configure([PeerEntry("openssh92")], ours=True, settings="[stage]\n\nparalel = 4\n")
    ran = master.run_as_cron(LINE)
    assert ran.status == 6
    assert "/etc/cback3.peerstage.ini: Line 3: unknown key 'paralel'" in ran.output
    assert ran.output.count("\n") == 1
    assert master.run_script(f"ls -d {STAGING} 2>/dev/null || true") == b""


def test_one_line_removes_the_extension(master: MasterContainer, bench: Bench) -> None:
    master.configure([PeerEntry("openssh92")], ours=False)
    before = master.run_script(f"cat {CONFIG}")
    master.run_script(f"cat >/tmp/xml; sed -i '/<\\/stage>/r /tmp/xml' {CONFIG}", f"{CBACK3_EXTENSION}\n".encode())
    assert CBACK3_EXTENSION.count("\n") == 4
    assert master.run_script(f"cat {CONFIG}") != before
    bench.container("openssh92").fill(FileTree(a=b"a", **{"cback.collect": b""}), empty_first=True)
    ran = master.run_as_cron(f"{CBACK3_BIN}/cback3 --debug stage")
    assert any("[peerstage.cback3.executeAction]" in text for _, text in ran.log)
    assert "\n" not in CBACK3_REMOVAL
    master.run_script(CBACK3_REMOVAL)
    assert master.run_script(f"cat {CONFIG}") == before
    master.remove(STAGING)
    ran = master.run_as_cron(f"{CBACK3_BIN}/cback3 --debug stage")
    assert not any("peerstage" in text for _, text in ran.log)
    assert f"./{today()}/openssh92/a" in master.tree(STAGING)
