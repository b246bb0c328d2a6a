"""What callers of the original rely on and the transport contract does not say, on every kind of peer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from kinds import ON_OUR_OWN, ONE_OF_EACH, WORKING, Way, as_the_table_says, each, failure_of

from peerstage import RemotePeer, StageError
from peerstage.errors import IncompleteStage
from peerstage.testing.contract import landed
from support.containers import UID, BenchPeer, Files
from support.once import make_once
from support.random_files import real_files


@pytest.fixture
def remote(way: Way, served: BenchPeer) -> RemotePeer:
    return served.remote(way.transport)


@pytest.fixture
def put(served: BenchPeer) -> Callable[[Files], None]:
    return served.container.fill


@each(WORKING)
def test_10_times_are_kept_only_if_asked(
    way: Way, served: BenchPeer, put: Callable[[Files], None], target: Path
) -> None:
    put(Files().file("a", b"a", mtime=1_000_000_000))
    keeping = served.remote(way.transport, preserve_times=True)
    if way.transport == "rcp":  # times are the command's own matter
        keeping.rcpCommand = f"{keeping.rcpCommand} -p"
    if way.transport == "guarded":  # the three commands ask for no times
        with pytest.raises(ValueError, match="preserve_times"):
            keeping.stagePeer(str(target))
        return
    keeping.stagePeer(str(target))
    assert (target / "a").stat().st_mtime == 1_000_000_000


@each(WORKING)
def test_11_empty_files_count_and_links_to_files_are_followed(
    way: Way, remote: RemotePeer, put: Callable[[Files], None], target: Path
) -> None:
    put(Files(empty=b"", real=b"real").link("link", "real"))
    with as_the_table_says(way, "links"):
        assert remote.stagePeer(str(target)) == 3
        assert landed(target) == {b"empty": b"", b"real": b"real", b"link": b"real"}
        assert not (target / "link").is_symlink()


@each(WORKING)
def test_12_what_can_not_be_staged_raises_after_the_rest_was_staged(
    way: Way, remote: RemotePeer, put: Callable[[Files], None], target: Path
) -> None:
    odd = Files(good=b"good", other=b"other").directory("sub").fifo("fifo")
    put(odd.link("dangling", "nowhere").link("link-to-directory", "sub").file("unreadable", b"x", 0, owner=0))
    if way.transport == "rcp":  # the command's status tells too little (PARITY 20)
        with pytest.raises(StageError, match=r"status 1.*not a regular file"):
            remote.stagePeer(str(target))
        assert landed(target) == {}
        return
    if failure_of(way, "the rest") is not None:
        with as_the_table_says(way, "the rest"):
            remote.stagePeer(str(target))
        return
    with pytest.raises(IncompleteStage) as caught:
        remote.stagePeer(str(target))
    report = caught.value.report
    assert report is not None
    assert report.count == 2
    assert {one.name for one in report.failed} == {"sub", "fifo", "dangling", "link-to-directory", "unreadable"}
    assert landed(target) == {b"good": b"good", b"other": b"other"}


@each(WORKING)
def test_13_an_unlistable_directory_is_an_os_error(served: BenchPeer, remote: RemotePeer, target: Path) -> None:
    (target / "old").write_bytes(b"old")
    served.container.execute("install", "-d", "-o", "root", "-m", "700", "/srv/collect/closed")
    remote.collectDir = f"{served.collect}/closed"
    with pytest.raises(OSError, match=r"[Pp]ermission|guard: refused|may not be listed"):
        remote.stagePeer(str(target))
    assert landed(target) == {b"old": b"old"}


@each(ONE_OF_EACH)
def test_13_a_wrong_user_key_or_host_key_is_an_os_error(
    way: Way, served: BenchPeer, put: Callable[[Files], None], target: Path
) -> None:
    put(Files(a=b"a"))
    wrong_key = served.options(identity=str(served.bench.home / "ca"))
    unknown_host = served.options(known_hosts=())
    stranger = served.remote(way.transport)
    stranger.remoteUser = "nobody-of-that-name"
    for remote in (stranger, *(served.remote(way.transport, ssh=ssh) for ssh in (wrong_key, unknown_host))):
        with pytest.raises(StageError) as caught:
            remote.stagePeer(str(target))
        assert str(caught.value).startswith(served.host)
        assert "\n" not in str(caught.value)
        assert not remote.checkCollectIndicator()
        with pytest.raises(StageError):
            remote.writeStageIndicator()
    assert landed(target) == {}


@each(ON_OUR_OWN)
def test_15_collect_and_target_directories_may_hold_spaces_and_globs(
    way: Way, served: BenchPeer, remote: RemotePeer, tmp_path: Path
) -> None:
    target = tmp_path / "tar get ?*"
    target.mkdir()
    name = "col lect [a-z]*"
    served.container.fill(Files(a=b"a", **{"cback.collect": b""}), directory=f"/srv/collect/{name}")
    remote.collectDir = f"{served.collect}/{name}"
    with as_the_table_says(way, "other paths"):
        assert remote.stagePeer(str(target)) == 2
        assert landed(target) == {b"a": b"a", b"cback.collect": b""}
        assert remote.checkCollectIndicator()


@each(WORKING)
def test_16_18_a_whole_run_in_one_login(
    way: Way, served: BenchPeer, remote: RemotePeer, put: Callable[[Files], None], target: Path, leaves_nothing: None
) -> None:
    with remote:
        assert not remote.checkCollectIndicator()
        files = Files(data=b"data", mine=b"", **{"cback.collect": b""}).directory(".directory")
        put(files.link("link", "mine") if failure_of(way, "links") is None else files.file("link"))
        assert remote.checkCollectIndicator()
        if way.transport != "guarded":
            assert remote.checkCollectIndicator("mine")
            assert remote.checkCollectIndicator("link")
            assert not remote.checkCollectIndicator("cback.*")
        assert not remote.checkCollectIndicator(".directory")
        assert remote.stagePeer(str(target)) == 4
        with as_the_table_says(way, "mark"):
            remote.writeStageIndicator()


@each(ONE_OF_EACH)
def test_17_why_a_check_is_false_is_logged(
    way: Way, served: BenchPeer, remote: RemotePeer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peerstage")
    another = f"[{served.host}]:{served.port} {(served.bench.home / 'keys/host_another.pub').read_text()}"
    changed = served.remote(way.transport, ssh=served.options(known_hosts=another.encode()))
    for level, one in ((logging.INFO, remote), (logging.ERROR, changed)):
        caplog.clear()
        assert not one.checkCollectIndicator()
        ours = [record for record in caplog.records if record.name == "peerstage.peer"]
        assert [record.levelno for record in ours] == [level], caplog.text
        assert served.host in ours[0].getMessage()


@each(WORKING)
def test_19_the_stage_indicator_is_an_empty_file_truncated_if_it_was_there(
    way: Way, served: BenchPeer, remote: RemotePeer, put: Callable[[Files], None]
) -> None:
    put(Files(**{"cback.stage": b"old content"}))
    name = "another" if way.transport == "rcp" else "with space and *"
    with as_the_table_says(way, "mark"), as_the_table_says(way, "other paths"):
        remote.writeStageIndicator(name)
        found = served.container.files()[name.encode()]
        assert (found.data, found.mode, found.uid) == (b"", 0o644, UID)
    remote.writeStageIndicator()
    assert served.container.files()[b"cback.stage"].data == b""


#: Where a set of real files goes beyond what is in flight at a time: on each program that serves files. The transport
#: contract has 600 files on every way.
IN_BULK = ("openssh92", "dropbear", "dropbear-sftp", "proftpd")
#: Kinds that differ from openssh92 in how one logs in alone: the same programs send the files, over as many hops.
ALIKE = ("sftp-only", "scp-only", "behind", "certs")


@each([way for way in WORKING if way.kind.name not in ALIKE])
def test_a_set_of_real_files_arrives_whole(way: Way, served: BenchPeer, remote: RemotePeer, target: Path) -> None:
    files = real_files(newlines=way.transport == "sftp", bulk=way.kind.name in IN_BULK)
    archive = served.bench.home / "keys" / f"real-{len(files)}.tar"
    make_once(archive, lambda: archive.write_bytes(Files().all(files).archive()))
    served.container.unpack(archive)
    assert remote.stagePeer(str(target)) == len(files)
    served.container.fill(fresh=True)
    found = landed(target)
    assert found.keys() == files.keys()
    assert [name for name, data in files.items() if found[name] != data] == []
    assert remote.last_report is not None
    assert remote.last_report.bytes == sum(map(len, files.values()))
