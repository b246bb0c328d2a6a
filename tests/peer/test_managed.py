"""Managed peers: commands and actions, over the session used for staging or by an rsh-like command."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, LocalPeer, RemotePeer, Retry
from peerstage.errors import Cancelled, ConnectError, ConnectionLost, LimitExceeded, NotAvailable, RemoteError
from peerstage.testing.contract import files_in
from support.local_user import LOCAL_USER, isolated_options
from support.programs import require_program
from support.sshd import Sshd
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

PeerFactory = Callable[..., RemotePeer]


@pytest.fixture(params=["session", "rsh", "isolated session", "isolated rsh"])
def managed(request: pytest.FixtureRequest, sshd: Sshd, collect: Path) -> PeerFactory:
    """Creates a peer that runs commands over its session or by OpenSSH's ssh, in this process or a child."""
    rsh = " ".join([require_program("ssh"), *sshd.ssh_arguments()]) if "rsh" in request.param else None

    def make(**changes: object) -> RemotePeer:
        isolated = "isolated" in request.param
        options = {"ssh": sshd.options(), "rshCommand": rsh, "isolated": isolated, **changes}
        return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def over_session(sshd: Sshd, collect: Path) -> PeerFactory:
    """Creates a peer that runs commands over its session."""

    def make(**changes: object) -> RemotePeer:
        options = {"ssh": sshd.options(), **changes}
        return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def logged_output(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns the lines of output that were logged."""
    caplog.set_level(logging.INFO, "peerstage")

    def lines() -> list[str]:
        records = [record for record in caplog.records if record.name == "peerstage.transport"]
        return [record.getMessage().partition(": ")[2] for record in records]

    return lines


@pytest.fixture
def cback(tmp_path: Path) -> Path:
    """A cback3 that records its arguments."""
    path = tmp_path / "cback3"
    path.write_text(f'#!/bin/sh\necho "$0 $*" >>{tmp_path}/argv\necho collecting; echo "a warning" >&2\n')
    path.chmod(0o755)
    return path


def argv(cback: Path) -> list[str]:
    return cback.with_name("argv").read_text().splitlines()


def has_started(path: Path) -> bool:
    """Return whether the peer's shell has written to the file, which it creates a moment earlier."""
    return path.exists() and path.read_text() != ""


# Commands


def test_a_command_is_run_unchanged_by_the_shell_on_the_peer(managed: PeerFactory, tmp_path: Path) -> None:
    managed().executeRemoteCommand(f"""printf '%s|' "it's" $((40 + 2)) "$HOME" >'{tmp_path}/out'""")
    assert (tmp_path / "out").read_text().startswith("it's|42|/")


def test_an_action_is_run_by_the_command_line_of_the_original(managed: PeerFactory, cback: Path) -> None:
    with managed(cbackCommand=f"{cback} --quiet") as peer:
        peer.executeManagedAction("collect", True)
        peer.executeManagedAction("purge", False)
    assert argv(cback) == [f"{cback} --quiet --full collect", f"{cback} --quiet purge"]


def test_the_default_cback_command_is_usr_bin_cback3(managed: PeerFactory) -> None:
    with pytest.raises(OSError, match="'/usr/bin/cback3 --full no-such-action' ended with status"):
        managed().executeManagedAction("no-such-action", True)


@pytest.mark.parametrize("action", [None, "", "  ", 3, "a\0b"])
def test_a_blank_or_invalid_action_is_a_value_error(over_session: PeerFactory, action: object) -> None:
    with pytest.raises(ValueError, match="Action must be"):
        over_session().executeManagedAction(action, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [None, "", " ", b"ls", "a\0b", "a\ud800b"])
def test_a_blank_or_invalid_command_is_a_value_error(over_session: PeerFactory, command: object) -> None:
    with pytest.raises(ValueError, match="Command to run must be"):
        over_session().executeRemoteCommand(command)  # type: ignore[arg-type]


def test_one_login_serves_commands_and_staging(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, cback: Path
) -> None:
    server = own_sshd()
    (collect / "a").write_bytes(b"a")
    with RemotePeer(
        server.host, str(collect), "/tmp", server.user, cbackCommand=str(cback), ssh=server.options()
    ) as peer:
        peer.executeManagedAction("collect", False)
        assert peer.stagePeer(str(target)) == 1
        peer.executeManagedAction("purge", False)
    assert len(argv(cback)) == 2
    assert server.log.count("Accepted publickey") == 1


def test_a_peer_that_only_runs_commands_needs_no_directories(sshd: Sshd, tmp_path: Path) -> None:
    peer = RemotePeer(sshd.host, remoteUser=sshd.user, ssh=sshd.options())
    peer.executeRemoteCommand(f"touch {tmp_path}/out")
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"transport": "scp"}, {"transport": "sftp"}, {"transport": "rcp"}, {"rcpCommand": "x"}]
)
def test_commands_use_a_session_whatever_the_transport(
    over_session: PeerFactory, tmp_path: Path, options: dict[str, str]
) -> None:
    over_session(**options).executeRemoteCommand(f"touch {tmp_path}/out")
    assert (tmp_path / "out").exists()


def test_the_input_of_a_command_is_empty(managed: PeerFactory, tmp_path: Path) -> None:
    managed().executeRemoteCommand(f"cat >{tmp_path}/out")
    assert (tmp_path / "out").read_bytes() == b""


def test_a_local_peer_has_no_commands_as_in_the_original() -> None:
    assert not hasattr(LocalPeer, "executeRemoteCommand")
    assert not hasattr(LocalPeer, "executeManagedAction")


# Failures


def test_a_non_zero_status_is_an_os_error_with_the_end_of_the_output(managed: PeerFactory) -> None:
    command = "seq 1000; echo 'the disk is full' >&2; exit 6"
    with pytest.raises(
        RemoteError, match=r"ended with status 6 and printed '.*999\\n1000\\nthe disk is full'"
    ) as caught:
        managed().executeRemoteCommand(command)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_the_error_of_an_action_names_it(managed: PeerFactory) -> None:
    peer = managed(cbackCommand="echo no such configuration; false")
    with pytest.raises(OSError, match=r"^127.0.0.1: The action 'collect' failed\. .*'.*; false --full collect'"):
        peer.executeManagedAction("collect", True)


def test_a_signal_is_an_os_error(over_session: PeerFactory) -> None:
    with pytest.raises(RemoteError, match=r"was killed, or ended without an exit status and printed 'about to die'"):
        over_session().executeRemoteCommand("echo about to die; kill -9 $$")


def test_the_peer_can_be_used_after_a_failed_command(managed: PeerFactory, target: Path) -> None:
    with managed() as peer:
        for _ in range(2):
            with pytest.raises(RemoteError):
                peer.executeRemoteCommand("exit 1")
        peer.executeRemoteCommand("true")
        assert not peer.checkCollectIndicator()


def test_a_peer_that_is_down_is_an_os_error(managed: PeerFactory, sshd: Sshd) -> None:
    peer = managed()
    peer.ssh = sshd.options(port=1)
    if peer.rshCommand is not None:
        peer.rshCommand = peer.rshCommand.replace(f"Port={sshd.port}", "Port=1")
    with pytest.raises(ConnectError):
        peer.executeRemoteCommand("true")


def test_a_missing_rsh_command_is_reported(managed: PeerFactory) -> None:
    with pytest.raises(NotAvailable, match="no/such/rsh"):
        managed(rshCommand="/no/such/rsh -q").executeRemoteCommand("true")
    with pytest.raises(ValueError, match="quote"):
        managed(rshCommand='ssh "-q').executeRemoteCommand("true")


def test_an_rsh_command_is_run_without_a_shell(tmp_path: Path) -> None:
    rsh = tmp_path / "rsh"
    rsh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/argv\n')
    rsh.chmod(0o755)
    peer = RemotePeer("2001:db8::1", remoteUser="backup", rshCommand=f'{rsh} -o "A B"')
    peer.executeRemoteCommand("ls '$HOME' | sort")
    assert (tmp_path / "argv").read_text() == "-o\nA B\nbackup@2001:db8::1\nls '$HOME' | sort\n"


# Output


def test_output_is_logged_line_by_line_as_it_arrives(
    managed: PeerFactory, logged_output: Callable[[], list[str]], tmp_path: Path
) -> None:
    command = f"echo first; echo second >&2; until [ -e {tmp_path}/go ]; do sleep 0.05; done; printf third"
    thread = threading.Thread(target=managed().executeRemoteCommand, args=(command,))
    thread.start()
    until = time.monotonic() + 20
    while len(logged_output()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    early = logged_output()
    (tmp_path / "go").touch()
    thread.join(20)
    assert sorted(early) == ["first", "second"]
    assert logged_output()[2:] == ["third"]


def test_output_cannot_forge_log_lines(over_session: PeerFactory, logged_output: Callable[[], list[str]]) -> None:
    over_session().executeRemoteCommand(r"printf 'a\rb\033[2Jc\342\200\256d\377\n'")
    assert logged_output() == [r"a\rb\x1b[2Jc\u202ed\xff"]


def test_excessive_output_is_read_and_dropped_except_its_beginning(
    managed: PeerFactory, logged_output: Callable[[], list[str]]
) -> None:
    size = 10_000_000
    managed().executeRemoteCommand(f"yes 0123456789abcdef | head -c {size}; echo; echo the end")
    lines = logged_output()
    assert lines[0] == "0123456789abcdef"
    assert sum(map(len, lines)) < 80 * 1024
    dropped = int(lines[-1].split()[2])
    assert size - 80 * 1024 < dropped < size


def test_a_line_without_end_on_stderr_is_truncated(
    managed: PeerFactory, logged_output: Callable[[], list[str]]
) -> None:
    with pytest.raises(RemoteError, match=r"printed '(\\x00)+the end'") as caught:
        managed().executeRemoteCommand("head -c 10000000 /dev/zero >&2; echo the end >&2; exit 1")
    assert len(str(caught.value)) < 2000
    assert len(logged_output()) == 2
    assert len(logged_output()[0]) == len(r"\x00") * 1024


def test_empty_lines_count_towards_the_limit(managed: PeerFactory, logged_output: Callable[[], list[str]]) -> None:
    managed(limits=Limits(stderr_bytes=1000)).executeRemoteCommand("yes '' | head -c 1000000")
    assert len(logged_output()) == 1001


# Time limits


def test_a_silent_command_does_not_stall(managed: PeerFactory) -> None:
    managed(limits=Limits(stall_timeout=0.5, reply_timeout=5)).executeRemoteCommand("sleep 1")


def test_a_command_that_hangs_is_given_up_at_the_deadline(managed: PeerFactory) -> None:
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"did not end within 2 s \(Limits.deadline\)"):
        managed(limits=Limits(deadline=2)).executeRemoteCommand("echo begun; sleep 1000")
    assert time.monotonic() - started < 10


def test_endless_output_does_not_extend_the_deadline(managed: PeerFactory) -> None:
    with pytest.raises(LimitExceeded):
        managed(limits=Limits(deadline=0.5)).executeRemoteCommand("yes")


def test_the_default_deadline_of_a_command_is_twelve_hours() -> None:
    assert Limits().command_deadline == 12 * 3600
    assert Limits(deadline=5).command_deadline == 5


def test_a_command_can_be_cancelled(managed: PeerFactory, tmp_path: Path) -> None:
    caught: list[BaseException] = []
    with managed() as peer:

        def run() -> None:
            try:
                peer.executeRemoteCommand(f"echo >{tmp_path}/begun; sleep 1000")
            except OSError as exc:
                caught.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: has_started(tmp_path / "begun"))
        peer.cancel()
        thread.join(10)
    assert [type(error) for error in caught] == [Cancelled]


def test_a_lost_connection_never_runs_a_command_twice(
    own_sshd: Callable[..., Sshd], collect: Path, tmp_path: Path
) -> None:
    server = own_sshd()
    retry = Retry(tries=5, delay=0)
    begun, end = tmp_path / "begun", tmp_path / "end"
    with RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=server.options(), retry=retry) as peer:
        assert not peer.checkCollectIndicator()
        killing = threading.Thread(target=lambda: (wait_until(lambda: has_started(begun)), kill_sessions(server)))
        killing.start()
        with pytest.raises(ConnectionLost, match=r"may still be running there\.$"):
            peer.executeRemoteCommand(f"echo >>{begun}; while [ -e {begun} -a ! -e {end} ]; do sleep 0.05; done")
        killing.join()
        assert begun.read_text() == "\n"
        assert not peer.checkCollectIndicator(), "the next operation connects again"
        peer.executeRemoteCommand(f"echo again >>{begun}; touch {end}")
    assert begun.read_text() == "\nagain\n"


def kill_sessions(server: Sshd) -> None:
    for pid in server.sessions():
        os.kill(pid, 9)


def test_a_stage_after_a_command_has_its_own_deadline(over_session: PeerFactory, collect: Path, target: Path) -> None:
    (collect / "a").write_bytes(b"a")
    with over_session(limits=Limits(deadline=4)) as peer:
        peer.executeRemoteCommand("sleep 3")
        assert peer.stagePeer(str(target)) == 1
    assert files_in(target) == {b"a": b"a"}


# Another local user (the tests run as root)


@pytest.mark.usefixtures("fresh_interpreter")
def test_an_rsh_command_runs_as_the_local_user(public_path: Path) -> None:
    rsh = public_path / "rsh"
    rsh.write_text('#!/bin/sh\necho "$(id -un) $HOME $1"; exit 3\n')
    rsh.chmod(0o755)
    peer = RemotePeer("db1", remoteUser="backup", rshCommand=str(rsh), localUser=LOCAL_USER)
    with pytest.raises(RemoteError, match=rf"status 3 and printed '{LOCAL_USER} \S+ backup@db1'"):
        peer.executeManagedAction("collect", False)


def test_a_session_of_the_local_user_runs_commands_and_stages(
    sshd: Sshd, collect: Path, target: Path, cback: Path, public_path: Path
) -> None:
    (collect / "a").write_bytes(b"a")
    options = isolated_options("sftp", sshd, public_path)
    with RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, cbackCommand=str(cback), **options) as peer:
        peer.executeManagedAction("collect", True)
        assert peer.stagePeer(str(target)) == 1
        with pytest.raises(RemoteError, match="status 7"):
            peer.executeRemoteCommand("exit 7")
        peer.executeRemoteCommand("true")
    assert argv(cback) == [f"{cback} --full collect"]
