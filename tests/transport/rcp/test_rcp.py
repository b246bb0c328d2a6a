"""Rcp-like commands that behave and misbehave: only regular files are staged, and no process is left behind."""

from __future__ import annotations

import logging
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peerstage import Limits, RemotePeer, SSHOptions
from peerstage.errors import (
    Cancelled,
    ConnectError,
    IncompleteStage,
    LimitExceeded,
    NotAvailable,
    NothingToStage,
    RemoteError,
    StageError,
)
from peerstage.testing.contract import files_in
from peerstage.transport.factory import TransportOptions
from peerstage.transport.rcp.command_line import reports_missing
from support.limits import ShortGrace
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

QUICK = Limits(stall_timeout=0.7, deadline=20)


class ScriptedCommand:
    """A shell script as the rcp-like command; ``$1`` is the source, ``$2`` the destination."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_name("argv")
        self.working = path.with_name("working")
        self.working.mkdir()

    def peer(self, script: str, *, arguments: str = "", name: str = "db1", limits: Limits = QUICK) -> RemotePeer:
        self.path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{self.log}\n{script}\n')
        self.path.chmod(0o755)
        command = f"{self.path} {arguments}".strip()
        return RemotePeer(name, "/collect", str(self.working), "backup", command, limits=limits)

    @property
    def argv(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def command(tmp_path: Path) -> ScriptedCommand:
    return ScriptedCommand(tmp_path / "my-rcp")


def assert_publishes_nothing(peer: RemotePeer, target: Path, error: type[StageError], match: str) -> None:
    """Assert that staging raises *error* as one line, and publishes nothing."""
    (target / "old").write_bytes(b"old")
    with pytest.raises(error, match=match) as caught:
        peer.stagePeer(str(target))
    assert str(caught.value).startswith(f"{peer.name} ")
    assert str(caught.value).isprintable()
    assert files_in(target) == {b"old": b"old"}


def test_the_command_gets_the_arguments_of_the_original(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('for t; do :; done; echo a >"$t/a"', arguments='-B "one word" -q')
    assert peer.stagePeer(str(target)) == 1
    assert command.argv[:4] == ["-B", "one word", "-q", "backup@db1:/collect/*"]
    assert command.argv[4].startswith(str(target) + "/.peerstage-"), "the private directory in the target"
    assert peer.last_report is not None
    assert peer.last_report.transport == "rcp"


def test_no_shell_interprets_the_name_of_the_directory(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('echo a >"$2/a"')
    peer.collectDir = "/c$(touch\t/tmp/never);x"
    peer.stagePeer(str(target))
    assert command.argv[0] == "backup@db1:/c$(touch\t/tmp/never);x/*"


def test_blanks_in_remote_paths_are_escaped_for_the_shell_on_the_peer(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('case "$1" in backup@*) [ -d "$2" ] && echo a >"$2/a" || echo a >"$2" ;; esac')
    peer.collectDir = "/a b/c  d"
    assert peer.stagePeer(str(target)) == 1
    assert peer.checkCollectIndicator()
    assert peer.checkCollectIndicator("in di cator")
    peer.writeStageIndicator()
    assert command.argv[0] == r"backup@db1:/a\ b/c\ \ d/*"
    assert command.argv[2] == r"backup@db1:/a\ b/c\ \ d/cback.collect"
    assert command.argv[4] == r"backup@db1:/a\ b/c\ \ d/in\ di\ cator"
    assert command.argv[7] == r"backup@db1:/a\ b/c\ \ d/cback.stage"


@pytest.mark.parametrize("escaped_by", ["cat", r"sed 's/\\/&&/g'"], ids=["rsync", "scp"])
def test_a_command_that_takes_backslashes_literally_gets_the_path_unchanged(
    command: ScriptedCommand, target: Path, tmp_path: Path, escaped_by: str
) -> None:
    remote = tmp_path / "re mo te"
    remote.mkdir()
    (remote / "cback.collect").touch()
    printed = f"""$(printf '%s' "$path" | {escaped_by})"""
    peer = command.peer(
        f"""case "$1" in backup@*) path=${{1#*:}} ;; *) path=${{2#*:}} ;; esac
        case "$path" in *\\\\*) printf '%s\\n' "scp: {printed}: No such file or directory" >&2; exit 1 ;; esac
        case "$1" in
            *[*]) exec cp "${{path%[*]}}"* "$2" ;;
            backup@*) exec cp "$path" "$2" ;;
            *) exec cp "$1" "$path" ;;
        esac"""
    )
    peer.collectDir = str(remote)
    assert peer.checkCollectIndicator()
    peer.writeStageIndicator()
    peer.writeStageIndicator("st a ge")
    assert peer.stagePeer(str(target)) == 3
    assert sorted(os.listdir(remote)) == sorted(os.listdir(target)) == ["cback.collect", "cback.stage", "st a ge"]


def test_the_address_of_an_ipv6_peer_stands_in_brackets(command: ScriptedCommand, target: Path) -> None:
    command.peer('echo a >"$2/a"', name="2001:db8::1").stagePeer(str(target))
    assert command.argv[0] == "backup@[2001:db8::1]:/collect/*"


@pytest.mark.parametrize("name", ["a;b", "$(id)", "-oProxyCommand=id", "a b"])
def test_an_ambiguous_peer_name_is_rejected_before_anything_is_run(command: ScriptedCommand, name: str) -> None:
    with pytest.raises(ValueError, match="Peer name"):
        command.peer("exit 0", name=name)
    assert not command.log.exists()


def test_copied_files_are_staged_with_their_modes(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('cd "$2"; echo one >one; : >"with space"; chmod 4777 one; chmod 600 "with space"')
    assert peer.stagePeer(str(target), permissions=None) == 2
    assert files_in(target) == {b"one": b"one\n", b"with space": b""}
    assert stat.S_IMODE((target / "one").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "with space").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("ln -s /etc/passwd bad", "bad"),
        ("ln -s nowhere bad", "bad"),
        ("mkdir -p bad/deep && echo x >bad/deep/file", "bad"),
        ("mkdir -p bad/deep && chmod 0 bad/deep bad", "bad"),
        ("mkfifo bad", "bad"),
        ("echo x >bad && ln bad other-name", "bad"),
        ("echo x >.hidden", ".hidden"),
    ],
)
def test_anything_but_a_regular_file_is_refused_alone(
    command: ScriptedCommand, target: Path, script: str, name: str
) -> None:
    with pytest.raises(IncompleteStage) as caught:
        command.peer(f'cd "$2"; echo good >good; {script}').stagePeer(str(target))
    assert caught.value.report is not None
    assert name in [file.name for file in caught.value.report.refused]
    assert files_in(target) == {b"good": b"good\n"}


def test_a_tree_of_any_depth_is_removed(command: ScriptedCommand, target: Path) -> None:
    deep = f'cd "$2"; echo a >a; mkdir -p {"d/" * 1500}'
    with pytest.raises(IncompleteStage):
        command.peer(deep, limits=Limits()).stagePeer(str(target))
    assert files_in(target) == {b"a": b"a\n"}


def test_status_0_without_files_is_an_error(command: ScriptedCommand, target: Path) -> None:
    assert_publishes_nothing(command.peer("exit 0"), target, NothingToStage, "no file")


def test_status_1_with_all_files_publishes_nothing(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('echo whole >"$2/whole"; echo "scp: lost \033[31mconnection" >&2; exit 1')
    assert_publishes_nothing(peer, target, RemoteError, "status 1 and printed 'scp: lost")


def test_a_failed_connection_is_distinguished_from_a_refusal(command: ScriptedCommand, target: Path) -> None:
    assert_publishes_nothing(command.peer("exit 255"), target, ConnectError, "Check that the peer is up")


def test_a_command_that_is_killed_publishes_nothing(command: ScriptedCommand, target: Path) -> None:
    assert_publishes_nothing(command.peer('echo x >"$2/x"; kill -9 $$'), target, RemoteError, "killed by signal 9")


@pytest.mark.parametrize("line", ["/does/not/exist -B", "/etc/passwd", "/tmp"])
def test_a_command_that_cannot_be_run_is_an_error(line: str, target: Path, tmp_path: Path) -> None:
    peer = RemotePeer("db1", "/collect", str(tmp_path), "backup", line)
    assert_publishes_nothing(peer, target, NotAvailable, "cannot be run")
    assert not peer.checkCollectIndicator()


@pytest.mark.parametrize("line", ['/bin/true "-B', '"', '/bin/true -o "a" "'])
def test_an_unclosed_quote_is_a_value_error_on_use(line: str, target: Path) -> None:
    peer = RemotePeer("db1", "/collect", "/tmp", "backup", line)
    for call in (lambda: peer.stagePeer(str(target)), peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match="quote is not closed"):
            call()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 1000",
        "trap '' TERM; while :; do sleep 1; done",
        "sleep 1000 & wait",
        "trap '' TERM; (trap '' TERM; sleep 1000) & wait; sleep 1000",
        'echo some >"$2/some"; exec sleep 1000',
        "yes | head -c 1000000000 >/dev/null; exec sleep 1000",
    ],
)
def test_a_command_that_hangs_is_killed_with_its_children(command: ScriptedCommand, target: Path, script: str) -> None:
    started = time.monotonic()
    assert_publishes_nothing(command.peer(script), target, LimitExceeded, "stall_timeout")
    assert time.monotonic() - started < 12


def test_endless_output_is_not_progress(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer("exec yes", limits=Limits(stall_timeout=0.2, deadline=20))
    assert_publishes_nothing(peer, target, LimitExceeded, "stall_timeout")


def test_much_output_is_drained(command: ScriptedCommand, target: Path) -> None:
    limits = Limits(stall_timeout=60)
    peer = command.peer('head -c 100000000 /dev/zero; echo a >"$2/a"', limits=limits)
    assert peer.stagePeer(str(target)) == 1


@pytest.mark.usefixtures("patience")
def test_a_slow_command_is_not_stalled(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('for n in 1 2 3 4 5; do echo more >>"$2/slow"; sleep 0.6; done', limits=Limits(stall_timeout=2))
    assert peer.stagePeer(str(target)) == 1


@pytest.mark.usefixtures("patience")
def test_the_deadline_ends_a_busy_command(command: ScriptedCommand, target: Path) -> None:
    busy = 'while :; do echo more >>"$2/slow"; sleep 0.1; done'
    assert_publishes_nothing(command.peer(busy, limits=Limits(deadline=1.5)), target, LimitExceeded, "deadline")


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("prologue", ["", 'head -c 9000000 /dev/zero >"$2/slow"; ', 'truncate -s 1T "$2/slow"; '])
def test_a_command_that_copies_single_bytes_is_too_slow(command: ScriptedCommand, target: Path, prologue: str) -> None:
    started = time.monotonic()
    drips = prologue + 'while :; do printf x >>"$2/slow"; sleep 0.1; done'
    assert_publishes_nothing(command.peer(drips, limits=ShortGrace()), target, LimitExceeded, "min_rate")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("ending", ["exit", "exec sleep 1000"])
def test_a_command_that_writes_more_than_all_files_may_have_is_ended(
    command: ScriptedCommand, target: Path, ending: str
) -> None:
    limits = Limits(total_bytes=100_000, stall_timeout=20, deadline=20)
    peer = command.peer(f'for t; do :; done; head -c 100001 /dev/zero >"$t/a"; {ending}', limits=limits)
    with pytest.raises(LimitExceeded, match=r"^db1\b.*Limits.total_bytes"):
        peer.stagePeer(str(target))
    assert files_in(target) == {}


def test_a_file_of_a_command_that_is_too_large_fails_alone(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('for t; do :; done; echo a >"$t/a"; echo large >"$t/b"', limits=Limits(file_bytes=5))
    with pytest.raises(IncompleteStage, match=r"b: It has 6 bytes, more than 5"):
        peer.stagePeer(str(target))
    assert files_in(target) == {b"a": b"a\n"}


def test_children_left_behind_do_not_delay_the_run(command: ScriptedCommand, target: Path) -> None:
    started = time.monotonic()
    assert command.peer('sleep 1000 & echo a >"$2/a"').stagePeer(str(target)) == 1
    assert time.monotonic() - started < 5


def test_cancel_ends_the_command(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer("exec sleep 1000", limits=Limits())
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(lambda: wait_until(command.log.exists) or peer.cancel())
        assert_publishes_nothing(peer, target, Cancelled, "Cancelled")
        cancelled.result()


def test_a_check_and_a_mark_run_the_command_once_and_leave_the_working_directory_empty(
    command: ScriptedCommand, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "cback.collect").touch()
    script = f'case "$1" in backup@*) cp "{remote}/${{1##*/}}" "$2" ;; *) cp "$1" "{remote}/${{2##*/}}" ;; esac'
    peer = command.peer(script)
    assert peer.checkCollectIndicator()
    assert not peer.checkCollectIndicator("missing")
    peer.writeStageIndicator()
    peer.writeStageIndicator("with space")
    assert (remote / "cback.stage").read_bytes() == b""
    assert (remote / "with space").exists()
    assert os.listdir(command.working) == []
    assert command.argv[0] == "backup@db1:/collect/cback.collect"
    assert command.argv[5] == "backup@db1:/collect/cback.stage"


@pytest.mark.parametrize("script", ["exit 0", 'ln -s /etc/passwd "$2"', 'mkdir "$2"', 'mkfifo "$2"', "exit 1"])
def test_a_check_accepts_only_a_regular_file(command: ScriptedCommand, script: str) -> None:
    assert not command.peer(script).checkCollectIndicator()
    assert os.listdir(command.working) == []


WARNING = "Warning: Identity file /root/.ssh/backup not accessible: No such file or directory."


@pytest.mark.parametrize(
    ("output", "status", "level"),
    [
        ("scp: /collect/cback.collect: No such file or directory", 1, logging.INFO),
        ("scp: download /collect/cback.collect/: not a regular file", 1, logging.INFO),
        ('rsync: [sender] link_stat "/collect/cback.collect" failed: No such file or directory (2)', 23, logging.INFO),
        (f"{WARNING}\nscp: /collect/cback.collect: No such file or directory", 1, logging.INFO),
        (f"{WARNING}\nbackup@db1: Permission denied (publickey).", 255, logging.ERROR),
        (f"{WARNING}\nbackup@db1: Permission denied (publickey).", 1, logging.ERROR),
        ("no such identity: /etc/collect/cback.collect: No such file or directory", 1, logging.ERROR),
        ("scp: /collect/cback.collect.d: No such file or directory", 1, logging.ERROR),
        ("scp: /collect/cback.collect: No such file or directory", 255, logging.ERROR),
        ("scp: /collect/cback.collect: Permission denied", 1, logging.ERROR),
        ("", 255, logging.ERROR),
    ],
)
def test_only_a_line_about_the_indicator_reports_it_missing(
    command: ScriptedCommand, caplog: pytest.LogCaptureFixture, output: str, status: int, level: int
) -> None:
    caplog.set_level(logging.INFO, "peerstage.peer")
    assert not command.peer(f"cat >&2 <<'END'\n{output}\nEND\nexit {status}").checkCollectIndicator()
    assert [record.levelno for record in caplog.records] == [level]
    assert ("does not exist yet" in caplog.text) == (level == logging.INFO)


@pytest.mark.parametrize(
    "escaped", [rb"/c\303\251/x y", rb"/c\#303\#251/x y", "/cé/x y".encode(), rb"'/c\303\251/x y'"]
)
def test_a_path_that_scp_and_rsync_escape_is_recognized(escaped: bytes) -> None:
    assert reports_missing(b"scp: " + escaped + b": No such file or directory\n", "/cé/x y".encode())


def test_a_mark_that_fails_is_an_error(command: ScriptedCommand) -> None:
    with pytest.raises(RemoteError, match="status 1"):
        command.peer("exit 1").writeStageIndicator()


def test_only_indicators_need_a_working_directory(command: ScriptedCommand, target: Path) -> None:
    peer = command.peer('echo a >"$2/a"')
    peer.workingDir = None
    assert peer.stagePeer(str(target)) == 1
    for call in (peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match="needs workingDir"):
            call()
    peer.workingDir = "/does/not/exist"
    assert not peer.checkCollectIndicator()
    with pytest.raises(StageError, match="working directory cannot be used"):
        peer.writeStageIndicator()


def test_the_command_has_no_terminal_and_no_input(command: ScriptedCommand, target: Path) -> None:
    script = 'cat; ( : </dev/tty ) 2>/dev/null && exit 3; echo a >"$2/a"'
    assert command.peer(script).stagePeer(str(target)) == 1


def test_progress_counts_imported_files(command: ScriptedCommand, target: Path) -> None:
    reports = []
    peer = command.peer('echo a >"$2/a"; echo bb >"$2/b"')
    peer.on_progress = reports.append
    peer.stagePeer(str(target))
    assert (reports[-1].files_done, reports[-1].bytes_done, reports[-1].files_total) == (2, 5, None)


def test_rcp_without_a_command_runs_the_default_of_the_original() -> None:
    options = TransportOptions(name="db1", user="backup", ssh=SSHOptions(), transport="rcp")
    assert options.split_commands()[0] == ["/usr/bin/scp", "-B", "-q", "-C"]


def test_any_other_transport_takes_precedence_over_a_command() -> None:
    for transport in ("sftp", "scp"):
        assert not TransportOptions(
            name="db1", user="backup", ssh=SSHOptions(), transport=transport, rcp_command="/bin/false"
        ).uses_rcp_command
