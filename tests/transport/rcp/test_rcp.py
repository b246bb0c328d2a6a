"""Foreign commands, good and bad: what arrived is judged by what it is, and nothing of a command stays behind."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
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
from peerstage.testing.contract import landed
from peerstage.transport.choose import Route
from peerstage.transport.rcp.command import says_not_there

pytestmark = pytest.mark.usefixtures("leaves_nothing")

QUICK = Limits(stall_timeout=0.7, deadline=20)


class Command:
    """A shell script in the place of an rcp-like command; ``$1`` is the source, ``$2`` the target."""

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
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "my rcp".replace(" ", "-"))


def publishes_nothing(peer: RemotePeer, target: Path, kind: type[StageError], words: str) -> None:
    (target / "old").write_bytes(b"old")
    with pytest.raises(kind, match=words) as caught:
        peer.stagePeer(str(target))
    assert str(caught.value).startswith(f"{peer.name} ")
    assert str(caught.value).isprintable()
    assert landed(target) == {b"old": b"old"}


def test_the_original_s_arguments_are_what_is_run(command: Command, target: Path) -> None:
    peer = command.peer('for t; do :; done; echo a >"$t/a"', arguments='-B "one word" -q')
    assert peer.stagePeer(str(target)) == 1
    assert command.argv[:4] == ["-B", "one word", "-q", "backup@db1:/collect/*"]
    assert command.argv[4].startswith(str(target) + "/.peerstage-"), "the landing's private directory"
    assert peer.last_report is not None
    assert peer.last_report.transport == "rcp"


def test_no_shell_reads_what_is_in_the_directory_s_name(command: Command, target: Path) -> None:
    peer = command.peer('echo a >"$2/a"')
    peer.collectDir = "/c$(touch\t/tmp/never);x"
    peer.stagePeer(str(target))
    assert command.argv[0] == "backup@db1:/c$(touch\t/tmp/never);x/*"


def test_blanks_of_the_peer_s_paths_are_escaped_for_its_shell(command: Command, target: Path) -> None:
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


@pytest.mark.parametrize("shown_by", ["cat", r"sed 's/\\/&&/g'"], ids=["rsync", "scp"])
def test_a_command_that_takes_backslashes_literally_is_given_the_path_as_it_is(
    command: Command, target: Path, tmp_path: Path, shown_by: str
) -> None:
    far = tmp_path / "f a r"
    far.mkdir()
    (far / "cback.collect").touch()
    shown = f"""$(printf '%s' "$there" | {shown_by})"""
    peer = command.peer(
        f"""case "$1" in backup@*) there=${{1#*:}} ;; *) there=${{2#*:}} ;; esac
        case "$there" in *\\\\*) printf '%s\\n' "scp: {shown}: No such file or directory" >&2; exit 1 ;; esac
        case "$1" in
            *[*]) exec cp "${{there%[*]}}"* "$2" ;;
            backup@*) exec cp "$there" "$2" ;;
            *) exec cp "$1" "$there" ;;
        esac"""
    )
    peer.collectDir = str(far)
    assert peer.checkCollectIndicator()
    peer.writeStageIndicator()
    peer.writeStageIndicator("st a ge")
    assert peer.stagePeer(str(target)) == 3
    assert sorted(os.listdir(far)) == sorted(os.listdir(target)) == ["cback.collect", "cback.stage", "st a ge"]


def test_the_address_of_an_ipv6_peer_stands_in_brackets(command: Command, target: Path) -> None:
    command.peer('echo a >"$2/a"', name="2001:db8::1").stagePeer(str(target))
    assert command.argv[0] == "backup@[2001:db8::1]:/collect/*"


@pytest.mark.parametrize("name", ["a;b", "$(id)", "-oProxyCommand=id", "a b"])
def test_a_name_that_could_be_misread_is_refused_before_anything_is_run(command: Command, name: str) -> None:
    with pytest.raises(ValueError, match="Peer name"):
        command.peer("exit 0", name=name)
    assert not command.log.exists()


def test_what_the_command_brings_is_staged_with_its_modes(command: Command, target: Path) -> None:
    peer = command.peer('cd "$2"; echo one >one; : >"with space"; chmod 4777 one; chmod 600 "with space"')
    assert peer.stagePeer(str(target), permissions=None) == 2
    assert landed(target) == {b"one": b"one\n", b"with space": b""}
    assert stat.S_IMODE((target / "one").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "with space").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("left", "name"),
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
def test_what_is_no_plain_file_is_refused_and_the_others_stay(
    command: Command, target: Path, left: str, name: str
) -> None:
    with pytest.raises(IncompleteStage) as caught:
        command.peer(f'cd "$2"; echo good >good; {left}').stagePeer(str(target))
    assert caught.value.report is not None
    assert name in [one.name for one in caught.value.report.refused]
    assert landed(target) == {b"good": b"good\n"}


def test_a_tree_of_any_depth_is_cleared_away(command: Command, target: Path) -> None:
    deep = f'cd "$2"; echo a >a; mkdir -p {"d/" * 1500}'
    with pytest.raises(IncompleteStage):
        command.peer(deep, limits=Limits()).stagePeer(str(target))
    assert landed(target) == {b"a": b"a\n"}


def test_status_0_with_nothing_there_is_an_error(command: Command, target: Path) -> None:
    publishes_nothing(command.peer("exit 0"), target, NothingToStage, "no file")


def test_status_1_with_everything_there_publishes_nothing(command: Command, target: Path) -> None:
    peer = command.peer('echo whole >"$2/whole"; echo "scp: lost \033[31mconnection" >&2; exit 1')
    publishes_nothing(peer, target, RemoteError, "status 1, saying 'scp: lost")


def test_a_lost_connection_is_told_from_a_refusal(command: Command, target: Path) -> None:
    publishes_nothing(command.peer("exit 255"), target, ConnectError, "Is the peer up")


def test_a_command_that_is_killed_publishes_nothing(command: Command, target: Path) -> None:
    publishes_nothing(command.peer('echo x >"$2/x"; kill -9 $$'), target, RemoteError, "killed by signal 9")


@pytest.mark.parametrize("line", ["/does/not/exist -B", "/etc/passwd", "/tmp"])
def test_a_command_that_can_not_be_run_says_so(line: str, target: Path, tmp_path: Path) -> None:
    peer = RemotePeer("db1", "/collect", str(tmp_path), "backup", line)
    publishes_nothing(peer, target, NotAvailable, "can not be run")
    assert not peer.checkCollectIndicator()


@pytest.mark.parametrize("line", ['/bin/true "-B', '"', '/bin/true -o "a" "'])
def test_a_quote_that_is_not_closed_is_a_value_error_on_use(line: str, target: Path) -> None:
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
def test_a_command_that_hangs_is_killed_with_its_children(command: Command, target: Path, script: str) -> None:
    started = time.monotonic()
    publishes_nothing(command.peer(script), target, LimitExceeded, "stall_timeout")
    assert time.monotonic() - started < 12


def test_a_command_that_talks_without_end_is_no_progress(command: Command, target: Path) -> None:
    publishes_nothing(command.peer("exec yes"), target, LimitExceeded, "stall_timeout")


def test_a_gibibyte_of_output_is_drained_and_not_kept(command: Command, target: Path) -> None:
    limits = Limits(stall_timeout=60)
    peer = command.peer('head -c 1073741824 /dev/zero; echo a >"$2/a"', limits=limits)
    assert peer.stagePeer(str(target)) == 1


@pytest.mark.usefixtures("patience")
def test_a_command_that_goes_on_slowly_is_not_stalled(command: Command, target: Path) -> None:
    peer = command.peer('for n in 1 2 3 4 5; do echo more >>"$2/slow"; sleep 0.6; done', limits=Limits(stall_timeout=2))
    assert peer.stagePeer(str(target)) == 1


@pytest.mark.usefixtures("patience")
def test_the_deadline_holds_for_a_command_that_keeps_busy(command: Command, target: Path) -> None:
    busy = 'while :; do echo more >>"$2/slow"; sleep 0.1; done'
    publishes_nothing(command.peer(busy, limits=Limits(deadline=1.5)), target, LimitExceeded, "deadline")


class HardlyAnyGrace(Limits):
    """Grants half a second in the place of ten minutes."""

    grace = 0.5


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("before", ["", 'head -c 9000000 /dev/zero >"$2/slow"; ', 'truncate -s 1T "$2/slow"; '])
def test_a_command_that_brings_a_byte_now_and_then_is_ended(command: Command, target: Path, before: str) -> None:
    started = time.monotonic()
    drips = before + 'while :; do printf x >>"$2/slow"; sleep 0.1; done'
    publishes_nothing(command.peer(drips, limits=HardlyAnyGrace()), target, LimitExceeded, "min_rate")
    assert time.monotonic() - started < 10


def test_children_that_stay_behind_do_not_keep_the_run(command: Command, target: Path) -> None:
    started = time.monotonic()
    assert command.peer('sleep 1000 & echo a >"$2/a"').stagePeer(str(target)) == 1
    assert time.monotonic() - started < 5


def test_cancel_ends_the_command(command: Command, target: Path) -> None:
    peer = command.peer("exec sleep 1000", limits=Limits())
    timer = threading.Timer(0.5, peer.cancel)
    timer.start()
    publishes_nothing(peer, target, Cancelled, "Cancelled")
    timer.join()


def test_a_check_and_a_mark_run_the_command_once_and_leave_nothing_in_the_working_directory(
    command: Command, tmp_path: Path
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "cback.collect").touch()
    script = f'case "$1" in backup@*) cp "{far}/${{1##*/}}" "$2" ;; *) cp "$1" "{far}/${{2##*/}}" ;; esac'
    peer = command.peer(script)
    assert peer.checkCollectIndicator()
    assert not peer.checkCollectIndicator("missing")
    peer.writeStageIndicator()
    peer.writeStageIndicator("with space")
    assert (far / "cback.stage").read_bytes() == b""
    assert (far / "with space").exists()
    assert os.listdir(command.working) == []
    assert command.argv[0] == "backup@db1:/collect/cback.collect"
    assert command.argv[5] == "backup@db1:/collect/cback.stage"


@pytest.mark.parametrize("script", ["exit 0", 'ln -s /etc/passwd "$2"', 'mkdir "$2"', 'mkfifo "$2"', "exit 1"])
def test_a_check_believes_only_a_regular_file(command: Command, script: str) -> None:
    assert not command.peer(script).checkCollectIndicator()
    assert os.listdir(command.working) == []


REFUSED = "Warning: Identity file /root/.ssh/backup not accessible: No such file or directory."


@pytest.mark.parametrize(
    ("says", "status", "level"),
    [
        ("scp: /collect/cback.collect: No such file or directory", 1, logging.INFO),
        ("scp: download /collect/cback.collect/: not a regular file", 1, logging.INFO),
        ('rsync: [sender] link_stat "/collect/cback.collect" failed: No such file or directory (2)', 23, logging.INFO),
        (f"{REFUSED}\nscp: /collect/cback.collect: No such file or directory", 1, logging.INFO),
        (f"{REFUSED}\nbackup@db1: Permission denied (publickey).", 255, logging.ERROR),
        (f"{REFUSED}\nbackup@db1: Permission denied (publickey).", 1, logging.ERROR),
        ("no such identity: /etc/collect/cback.collect: No such file or directory", 1, logging.ERROR),
        ("scp: /collect/cback.collect.d: No such file or directory", 1, logging.ERROR),
        ("scp: /collect/cback.collect: No such file or directory", 255, logging.ERROR),
        ("scp: /collect/cback.collect: Permission denied", 1, logging.ERROR),
        ("", 255, logging.ERROR),
    ],
)
def test_only_a_line_about_the_indicator_says_that_it_is_not_there(
    command: Command, caplog: pytest.LogCaptureFixture, says: str, status: int, level: int
) -> None:
    caplog.set_level(logging.INFO, "peerstage.peer")
    assert not command.peer(f"cat >&2 <<'END'\n{says}\nEND\nexit {status}").checkCollectIndicator()
    assert [one.levelno for one in caplog.records] == [level]
    assert ("is not there (yet)" in caplog.text) == (level == logging.INFO)


@pytest.mark.parametrize("shown", [rb"/c\303\251/x y", rb"/c\#303\#251/x y", "/cé/x y".encode(), rb"'/c\303\251/x y'"])
def test_a_name_that_scp_and_rsync_show_escaped_is_known_again(shown: bytes) -> None:
    assert says_not_there(b"scp: " + shown + b": No such file or directory\n", "/cé/x y".encode())


def test_a_mark_that_fails_is_an_error(command: Command) -> None:
    with pytest.raises(RemoteError, match="status 1"):
        command.peer("exit 1").writeStageIndicator()


def test_a_working_directory_is_needed_for_indicators_alone(command: Command, target: Path) -> None:
    peer = command.peer('echo a >"$2/a"')
    peer.workingDir = None
    assert peer.stagePeer(str(target)) == 1
    for call in (peer.checkCollectIndicator, peer.writeStageIndicator):
        with pytest.raises(ValueError, match="working directory"):
            call()
    peer.workingDir = "/does/not/exist"
    assert not peer.checkCollectIndicator()
    with pytest.raises(StageError, match="working directory can not be used"):
        peer.writeStageIndicator()


def test_the_command_has_no_terminal_and_no_input(command: Command, target: Path) -> None:
    asks = 'cat; ( : </dev/tty ) 2>/dev/null && exit 3; echo a >"$2/a"'
    assert command.peer(asks).stagePeer(str(target)) == 1


def test_progress_counts_what_was_adopted(command: Command, target: Path) -> None:
    told = []
    peer = command.peer('echo a >"$2/a"; echo bb >"$2/b"')
    peer.on_progress = told.append
    peer.stagePeer(str(target))
    assert (told[-1].files_done, told[-1].bytes_done, told[-1].files_total) == (2, 5, None)


def test_without_a_command_rcp_runs_what_the_original_ran() -> None:
    route = Route(name="db1", user="backup", ssh=SSHOptions(), transport="rcp")
    assert route.split_command() == ["/usr/bin/scp", "-B", "-q", "-C"]


def test_any_other_transport_wins_over_a_command() -> None:
    for transport in ("sftp", "scp"):
        assert not Route(
            name="db1", user="backup", ssh=SSHOptions(), transport=transport, rcp_command="/bin/false"
        ).by_command
