"""Promises to callers of the original beyond the transport contract, on every kind of peer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from kinds import ONE_PER_KIND, WITHOUT_RCP, WORKING, Scenario, expect_by_table, find_failure, run_on

from peerstage import RemotePeer, StageError, StageOptions
from peerstage.errors import IncompleteStage
from peerstage.testing.contract import files_in
from support.containers import UID, BenchPeer, FileTree
from support.once import make_once
from support.random_files import make_real_files


@pytest.fixture
def remote(scenario: Scenario, bench_peer: BenchPeer) -> RemotePeer:
    return bench_peer.remote(scenario.transport)


@pytest.fixture
def put(bench_peer: BenchPeer) -> Callable[[FileTree], None]:
    return bench_peer.container.fill


@run_on(WORKING)
def test_file_times_are_kept_only_on_request(
    scenario: Scenario, bench_peer: BenchPeer, put: Callable[[FileTree], None], target: Path
) -> None:
    put(FileTree().add_file("a", b"a", mtime=1_000_000_000))
    keeping = bench_peer.remote(scenario.transport, stage=StageOptions(preserve_times=True))
    if scenario.transport == "rcp":  # times are up to the command
        keeping.rcpCommand = f"{keeping.rcpCommand} -p"
    if scenario.transport == "guarded":  # the three commands ask for no times
        with pytest.raises(ValueError, match="preserve_times"):
            keeping.stagePeer(str(target))
        return
    keeping.stagePeer(str(target))
    assert (target / "a").stat().st_mtime == 1_000_000_000


@run_on(WORKING)
def test_empty_files_count_and_links_to_files_are_followed(
    scenario: Scenario, remote: RemotePeer, put: Callable[[FileTree], None], target: Path
) -> None:
    put(FileTree(empty=b"", real=b"real").add_link("link", "real"))
    with expect_by_table(scenario, "links"):
        assert remote.stagePeer(str(target)) == 3
        assert files_in(target) == {b"empty": b"", b"real": b"real", b"link": b"real"}
        assert not (target / "link").is_symlink()


@run_on(WORKING)
def test_unstageable_entries_raise_after_the_others_were_staged(
    scenario: Scenario, remote: RemotePeer, put: Callable[[FileTree], None], target: Path
) -> None:
    odd = FileTree(good=b"good", other=b"other").add_directory("sub").add_fifo("fifo")
    put(
        odd.add_link("dangling", "nowhere")
        .add_link("link-to-directory", "sub")
        .add_file("unreadable", b"x", 0, owner=0)
    )
    if scenario.transport == "rcp":  # a status other than 0 publishes nothing
        with pytest.raises(StageError, match=r"status 1.*not a regular file"):
            remote.stagePeer(str(target))
        assert files_in(target) == {}
        return
    if find_failure(scenario, "the rest") is not None:
        with expect_by_table(scenario, "the rest"):
            remote.stagePeer(str(target))
        return
    with pytest.raises(IncompleteStage) as caught:
        remote.stagePeer(str(target))
    report = caught.value.report
    assert report is not None
    assert report.count == 2
    assert {one.name for one in report.failed} == {"sub", "fifo", "dangling", "link-to-directory", "unreadable"}
    assert files_in(target) == {b"good": b"good", b"other": b"other"}


@run_on(WORKING)
def test_only_selected_files_are_staged_and_a_directory_that_is_left_out_is_no_error(
    scenario: Scenario, remote: RemotePeer, put: Callable[[FileTree], None], target: Path
) -> None:
    tree = FileTree(**{"a.gz": b"a" * 1000, "b.gz": b"b" * 300_000, "c.tmp": b"c" * 300_000, "z.gz": b"z"})
    if scenario.transport != "rcp" and find_failure(scenario, "the rest") is None:
        tree.add_directory("lost+found")
    put(tree)
    remote.stage = StageOptions(exclude=("*.tmp", "lost+found"), max_size=100_000)
    assert remote.stagePeer(str(target)) == 2
    assert files_in(target) == {b"a.gz": b"a" * 1000, b"z.gz": b"z"}
    assert remote.last_report is not None
    left_out = {one.name: str(one.reason) for one in remote.last_report.left_out}
    assert {"lost+found": "excluded", **left_out} == {
        "b.gz": "above-max-size", "c.tmp": "excluded", "lost+found": "excluded",
    }  # fmt: skip


@run_on(WORKING)
def test_unlistable_directory_is_an_os_error(bench_peer: BenchPeer, remote: RemotePeer, target: Path) -> None:
    (target / "old").write_bytes(b"old")
    bench_peer.container.execute("install", "-d", "-o", "root", "-m", "700", "/srv/collect/closed")
    remote.collectDir = f"{bench_peer.collect}/closed"
    with pytest.raises(OSError, match=r"[Pp]ermission|guard: refused|cannot be listed"):
        remote.stagePeer(str(target))
    assert files_in(target) == {b"old": b"old"}


@run_on(ONE_PER_KIND)
def test_wrong_user_key_or_host_key_is_an_os_error(
    scenario: Scenario, bench_peer: BenchPeer, put: Callable[[FileTree], None], target: Path
) -> None:
    put(FileTree(a=b"a"))
    wrong_key = bench_peer.options(identity=str(bench_peer.bench.home / "ca"))
    unknown_host = bench_peer.options(known_hosts=())
    stranger = bench_peer.remote(scenario.transport)
    stranger.remoteUser = "nobody-of-that-name"
    for remote in (stranger, *(bench_peer.remote(scenario.transport, ssh=ssh) for ssh in (wrong_key, unknown_host))):
        with pytest.raises(StageError) as caught:
            remote.stagePeer(str(target))
        assert str(caught.value).startswith(bench_peer.host)
        assert "\n" not in str(caught.value)
        assert not remote.checkCollectIndicator()
        with pytest.raises(StageError):
            remote.writeStageIndicator()
    assert files_in(target) == {}


@run_on(WITHOUT_RCP)
def test_directories_may_contain_spaces_and_globs(
    scenario: Scenario, bench_peer: BenchPeer, remote: RemotePeer, tmp_path: Path
) -> None:
    target = tmp_path / "tar get ?*"
    target.mkdir()
    name = "col lect [a-z]*"
    bench_peer.container.fill(FileTree(a=b"a", **{"cback.collect": b""}), directory=f"/srv/collect/{name}")
    remote.collectDir = f"{bench_peer.collect}/{name}"
    with expect_by_table(scenario, "other paths"):
        assert remote.stagePeer(str(target)) == 2
        assert files_in(target) == {b"a": b"a", b"cback.collect": b""}
        assert remote.checkCollectIndicator()


@run_on(WORKING)
def test_whole_run_uses_one_login(
    scenario: Scenario,
    bench_peer: BenchPeer,
    remote: RemotePeer,
    put: Callable[[FileTree], None],
    target: Path,
    leaves_nothing: None,
) -> None:
    with remote:
        assert not remote.checkCollectIndicator()
        files = FileTree(data=b"data", mine=b"", **{"cback.collect": b""}).add_directory(".directory")
        put(files.add_link("link", "mine") if find_failure(scenario, "links") is None else files.add_file("link"))
        assert remote.checkCollectIndicator()
        if scenario.transport != "guarded":
            assert remote.checkCollectIndicator("mine")
            assert remote.checkCollectIndicator("link")
            assert not remote.checkCollectIndicator("cback.*")
        assert not remote.checkCollectIndicator(".directory")
        assert remote.stagePeer(str(target)) == 4
        with expect_by_table(scenario, "mark"):
            remote.writeStageIndicator()


@run_on(ONE_PER_KIND)
def test_reason_of_a_false_check_is_logged(
    scenario: Scenario, bench_peer: BenchPeer, remote: RemotePeer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peerstage")
    another = f"[{bench_peer.host}]:{bench_peer.port} {(bench_peer.bench.home / 'keys/host_another.pub').read_text()}"
    changed = bench_peer.remote(scenario.transport, ssh=bench_peer.options(known_hosts=another.encode()))
    for level, one in ((logging.INFO, remote), (logging.ERROR, changed)):
        caplog.clear()
        assert not one.checkCollectIndicator()
        ours = [record for record in caplog.records if record.name == "peerstage.peer"]
        assert [record.levelno for record in ours] == [level], caplog.text
        assert bench_peer.host in ours[0].getMessage()


@run_on(WORKING)
def test_stage_indicator_is_an_empty_file_truncated_if_it_exists(
    scenario: Scenario, bench_peer: BenchPeer, remote: RemotePeer, put: Callable[[FileTree], None]
) -> None:
    put(FileTree(**{"cback.stage": b"old content"}))
    name = "another" if scenario.transport == "rcp" else "with space and *"
    with expect_by_table(scenario, "mark"), expect_by_table(scenario, "other paths"):
        remote.writeStageIndicator(name)
        found = bench_peer.container.files()[name.encode()]
        assert (found.data, found.mode, found.uid) == (b"", 0o644, UID)
    remote.writeStageIndicator()
    assert bench_peer.container.files()[b"cback.stage"].data == b""


#: Kinds on which the files exceed what is in flight at once, one for each server program. The transport contract has
#: 600 files in every scenario.
IN_BULK = ("openssh92", "dropbear", "dropbear-sftp", "proftpd")
#: Kinds that differ from openssh92 only in the login: the same programs send the files.
ALIKE = ("sftp-only", "scp-only", "behind", "certs")


@run_on([scenario for scenario in WORKING if scenario.kind.name not in ALIKE])
def test_realistic_files_arrive_complete(
    scenario: Scenario, bench_peer: BenchPeer, remote: RemotePeer, target: Path
) -> None:
    files = make_real_files(newlines=scenario.transport == "sftp", bulk=scenario.kind.name in IN_BULK)
    archive = bench_peer.bench.home / "keys" / f"real-{len(files)}.tar"
    make_once(archive, lambda: archive.write_bytes(FileTree().add_files(files).to_tar()))
    bench_peer.container.unpack(archive)
    assert remote.stagePeer(str(target)) == len(files)
    bench_peer.container.fill(empty_first=True)
    found = files_in(target)
    assert found.keys() == files.keys()
    assert [name for name, data in files.items() if found[name] != data] == []
    assert remote.last_report is not None
    assert remote.last_report.bytes == sum(map(len, files.values()))
