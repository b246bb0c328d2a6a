"""`localUser` as a site uses it: in root's cron job, with that user's keys and configuration; and what can go wrong."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest

from peerstage import RemotePeer, Retry, StageOptions, verify
from peerstage.errors import (
    ConfigurationError,
    LoginError,
    NotAvailable,
    StageError,
    UnknownHostKey,
)
from peerstage.reasons import Reason
from peerstage.testing.contract import files_in
from support.accounts import Account
from support.children import isolated_children, run_in_fork
from support.local_user import options_by_value, rcp_command_as
from support.sshd import KillsSessions, Sshd

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ROOT = Path(__file__).parents[2]


def create_files(collect: Path) -> None:
    (collect / "a").write_bytes(b"content of a")
    (collect / "cback.collect").touch()


@pytest.mark.parametrize("transport", ["sftp", "scp", "guarded", "rcp"])
def test_the_users_own_keys_configuration_and_known_hosts_are_used(
    sshd: Sshd, collect: Path, target: Path, public_path: Path, user: Account, transport: str, own_home: Path
) -> None:
    """As in root's cron job: no options in the call, everything in that user's home, and nothing of root's is read."""
    create_files(collect)
    user.configure_ssh(sshd)
    trap = own_home / ".ssh"
    trap.mkdir()
    (trap / "config").write_text("Host db1\n  Port 1\n")
    working = user.chown_tree(public_path)
    peer = RemotePeer("db1", str(collect), str(working), sshd.user, None, user.name)
    if transport == "rcp":
        peer.rcpCommand = rcp_command_as(user.name, sshd, public_path)
        peer.name = sshd.host
    else:
        peer.transport, peer.guarded = ("scp", True) if transport == "guarded" else (transport, False)
    with peer:
        assert peer.checkCollectIndicator()
        assert not peer.checkCollectIndicator("missing")
        assert peer.stagePeer(str(target)) == 2
        peer.writeStageIndicator()
        assert len(isolated_children()) == 1, "one child serves all calls"
    assert files_in(target) == {b"a": b"content of a", b"cback.collect": b""}
    found = (target / "a").stat()
    assert (found.st_uid, found.st_gid) == (user.uid, user.gid), "the user owns the files, as with the original"
    assert (collect / "cback.stage").exists()
    assert peer.last_report is not None
    assert peer.last_report.transport == ("scp" if transport == "guarded" else transport)
    assert not list(working.glob("peerstage-*")), "nothing is left in the working directory"


@pytest.mark.parametrize("ownership", [None, (12, 34)])
def test_the_manifest_belongs_to_the_owner_of_the_files(
    sshd: Sshd, collect: Path, target: Path, user: Account, ownership: tuple[int, int] | None
) -> None:
    create_files(collect)
    options, stage = options_by_value(sshd), StageOptions(manifest=True)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=options, stage=stage)
    assert peer.stagePeer(str(target), ownership) == 2
    assert verify(target).is_intact
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in target.iterdir()}
    names = ("a", "cback.collect", "peerstage.json", "peerstage.sha256")
    assert owners == dict.fromkeys(names, ownership or (user.uid, user.gid))
    assert (target / "peerstage.json").stat().st_mode & 0o777 == 0o600


def test_one_login_serves_a_with_block_and_each_call_outside_it_logs_in(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, user: Account
) -> None:
    server = own_sshd()
    create_files(collect)
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, None, user.name, ssh=options_by_value(server))
    with peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == 2
        peer.writeStageIndicator()
    assert server.log.count("Accepted publickey for") == 1
    assert peer.checkCollectIndicator()
    assert pickle.loads(pickle.dumps(peer)).checkCollectIndicator()
    assert server.log.count("Accepted publickey for") == 3


def test_a_peer_without_sftp_is_remembered_across_children(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, user: Account
) -> None:
    server = own_sshd(sftp="/bin/false")
    create_files(collect)
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, None, user.name, ssh=options_by_value(server))
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(str(target)) == 2
    assert peer.last_report is not None
    assert peer.last_report.transport == "scp"
    assert server.log.count("subsystem") <= 2, "SFTP was requested once"


def test_the_child_reconnects_after_a_lost_connection_and_reports_it(
    own_sshd: Callable[..., Sshd],
    collect: Path,
    target: Path,
    user: Account,
    caplog: pytest.LogCaptureFixture,
    bulk: Path,
) -> None:
    server = own_sshd()
    os.link(bulk, collect / "big")
    kill_once = KillsSessions(server, after=32 << 20)
    peer = RemotePeer(
        server.host, str(collect), "/tmp", server.user, None, user.name,
        ssh=options_by_value(server), on_progress=kill_once, retry=Retry(delay=0.05),
    )  # fmt: skip
    assert peer.stagePeer(str(target)) == 1
    subprocess.run(["cmp", str(collect / "big"), str(target / "big")], check=True)
    assert peer.last_report is not None
    assert peer.last_report.retries == 1
    assert peer.last_report.resumed_bytes >= 16 << 20
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.name for record in warned] == ["peerstage.transport"]
    assert "[connection-lost] Attempt 2 of 3" in warned[0].getMessage()
    assert [file.outcome for file in peer.last_report.files] == ["resumed"]


def test_the_agent_is_the_one_in_the_users_own_configuration(
    sshd: Sshd, collect: Path, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_files(collect)
    sock = user.home / "agent.sock"
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    agent = subprocess.Popen([*become, "ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        while not sock.exists():
            assert agent.poll() is None
        user.configure_ssh(sshd)
        key = user.home / ".ssh" / "id_ed25519"
        subprocess.run([*become, "env", f"SSH_AUTH_SOCK={sock}", "ssh-add", "-q", str(key)], check=True)
        key.unlink()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        peer = RemotePeer("db1", str(collect), "/tmp", sshd.user, None, user.name)
        with pytest.raises(LoginError, match="no key, no agent, no password"):
            peer.writeStageIndicator()  # the agent of root's environment is not the user's
        user.configure_ssh(sshd, IdentityAgent=str(sock))
        key.unlink()
        peer.writeStageIndicator()
    finally:
        agent.terminate()
        agent.wait()
        sock.unlink(missing_ok=True)
    assert (collect / "cback.stage").exists()


# Failures


def assert_refused(
    peer: RemotePeer, target: Path, kind: type[StageError], message: str, caplog: pytest.LogCaptureFixture
) -> StageError:
    (target / "old").write_bytes(b"old")
    with pytest.raises(kind, match=message) as caught:
        peer.stagePeer(str(target))
    assert str(caught.value).isprintable()
    assert peer.name in str(caught.value)
    assert files_in(target) == {b"old": b"old"}
    caplog.clear()
    assert not peer.checkCollectIndicator()
    assert [record.levelno for record in caplog.records if record.name == "peerstage.peer"] == [logging.ERROR]
    with pytest.raises(kind, match=message):
        peer.writeStageIndicator()
    return caught.value


@pytest.mark.usefixtures("root")
def test_an_unknown_user_and_a_user_with_roots_id_are_refused(
    target: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = RemotePeer("db1", "/collect", "/tmp", "backup", None, "no_such_user")
    assert_refused(peer, target, ConfigurationError, "no local user 'no_such_user'", caplog)
    monkeypatch.setattr("pwd.getpwnam", entry_with_uid_0)
    peer.localUser = "toor"
    assert_refused(peer, target, ConfigurationError, "has uid 0", caplog)


def entry_with_uid_0(name: str) -> object:
    import pwd

    return pwd.struct_passwd((name, "x", 0, 0, "", "/root", "/bin/sh"))


def test_only_root_can_copy_as_another_user(target: Path, user: Account, collect: Path) -> None:
    script = (
        "import sys; from peerstage import RemotePeer\n"
        "peer = RemotePeer('db1', '/collect', '/tmp', 'backup', None, 'games')\n"
        "try: peer.stagePeer('/tmp')\n"
        "except OSError as exc: print(type(exc).__name__, exc)\n"
    )
    code = f"import os, sys; sys.path[:0] = {sys.path!r}; import peerstage.peer.remote, encodings.ascii\n"
    drop = f"os.setgroups([]); os.setgid({user.gid}); os.setuid({user.uid})\n"
    done = subprocess.run([sys.executable, "-c", code + drop + script], capture_output=True, text=True)
    assert done.stdout == "NotAvailable db1: Only root can remote copy as another user.\n", done.stderr


def test_a_user_without_shell_home_and_keys_gets_a_login_error(
    sshd: Sshd, collect: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create_files(collect)
    options = sshd.options(identity=None, known_hosts=sshd.known_hosts.read_bytes())
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, "nobody", ssh=options)
    assert_refused(peer, target, LoginError, "no key, no agent, no password", caplog)
    peer.ssh = options_by_value(sshd)
    assert peer.stagePeer(str(target)) == 2, "no shell and no home are needed"


def test_a_key_that_the_user_cannot_read_is_not_read_by_root(
    sshd: Sshd, collect: Path, target: Path, user: Account, caplog: pytest.LogCaptureFixture
) -> None:
    create_files(collect)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name)
    peer.ssh = options_by_value(sshd, pkey=None, identity=str(sshd.identity))
    assert_refused(peer, target, LoginError, "Permission denied", caplog)
    peer.ssh = options_by_value(sshd, known_hosts=str(sshd.known_hosts))
    assert_refused(peer, target, UnknownHostKey, f"local user '{user.name}'", caplog)
    user.configure_ssh(sshd)
    (user.home / ".ssh" / "id_ed25519").chmod(0o644)
    peer.name, peer.ssh = "db1", RemotePeer("x", None, None, "y").ssh
    error = assert_refused(peer, target, LoginError, "others can access it", caplog)
    assert isinstance(error, LoginError)
    assert (error.reason, error.attempts[0].reason) == (Reason.KEY_FILE_PERMISSIONS,) * 2
    assert error.attempts[0].path == f"{user.home}/.ssh/id_ed25519"


def test_a_working_directory_that_the_user_cannot_write_is_reported(
    sshd: Sshd, collect: Path, public_path: Path, user: Account
) -> None:
    create_files(collect)
    command = rcp_command_as(user.name, sshd, public_path)
    peer = RemotePeer(sshd.host, str(collect), "/root", sshd.user, command, user.name)
    assert not peer.checkCollectIndicator()
    with pytest.raises(StageError, match="working directory cannot be used: Permission denied") as caught:
        peer.writeStageIndicator()
    assert caught.value.reason is Reason.WORKING_DIRECTORY_UNUSABLE
    peer.workingDir = None
    with pytest.raises(ValueError, match="needs workingDir"):
        peer.writeStageIndicator()


# Environments


def test_it_works_in_the_daemonic_processes_of_worker_pools(
    sshd: Sshd, collect: Path, target: Path, user: Account
) -> None:
    create_files(collect)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=options_by_value(sshd))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=stage_in_worker, args=(peer, str(target), queue), daemon=True)
    worker.start()
    assert queue.get() == 2
    worker.join()
    worker.close()
    queue.close()
    assert files_in(target) == {b"a": b"content of a", b"cback.collect": b""}


def stage_in_worker(peer: RemotePeer, target: str, queue: multiprocessing.SimpleQueue[int | str]) -> None:
    assert multiprocessing.current_process().daemon
    try:
        queue.put(peer.stagePeer(target))
    except BaseException as exc:
        queue.put(repr(exc))


#: In a mount namespace, binds directories below its first argument, and runs the Python there:
#: ``PREFIX=COPY ... -- PROGRAM ARGUMENT...``.
BIND_BELOW = """
closed=$1; shift
while [ "$1" != -- ]; do mkdir -p "$closed/${1##*=}" && mount --bind "${1%=*}" "$closed/${1##*=}" || exit 9; shift; done
shift; exec "$closed/$@"
"""


def test_it_works_if_the_user_cannot_read_the_package_and_the_python_installation(
    sshd: Sshd, collect: Path, target: Path, user: Account, tmp_path: Path
) -> None:
    """Paramiko and the standard library, too, are in a directory that only root can enter."""
    create_files(collect)
    user.configure_ssh(sshd)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    prefix = Path(sys.base_prefix)
    python = Path(sys.executable).resolve().relative_to(prefix.resolve())
    copies = {prefix: "python", Path(paramiko.__file__).parents[1]: "site-packages", ROOT / "src": "src"}
    script = (
        f"import os, subprocess, sys; sys.path[:0] = [{str(closed / 'src')!r}, {str(closed / 'site-packages')!r}]\n"
        "import encodings, paramiko, peerstage\n"
        "from peerstage import RemotePeer\n"
        "paths = [sys.executable, *(module.__file__ for module in (os, encodings, paramiko, peerstage))]\n"
        f"unread = ['setpriv', '--reuid={user.uid}', '--regid={user.gid}', '--clear-groups', 'cat']\n"
        "for path in paths:\n"
        f"    assert path.startswith({str(closed)!r}), path\n"
        "    seen = subprocess.run([*unread, path], capture_output=True, text=True)\n"
        "    assert 'Permission denied' in seen.stderr, path\n"
        "for name in ('sftp', 'scp'):\n"
        f"    peer = RemotePeer('db1', {str(collect)!r}, '/tmp', {sshd.user!r}, None, {user.name!r}, transport=name)\n"
        "    with peer:\n"
        f"        print(peer.checkCollectIndicator(), peer.stagePeer({str(target)!r}))\n"
        "        peer.writeStageIndicator()\n"
        f"peer = RemotePeer('db1', {str(collect)!r}, '/tmp', 'nobody_there', None, {user.name!r})\n"
        "try: peer.writeStageIndicator()\n"
        "except OSError as exc: print(type(exc).__name__)\n"
    )
    mounts = [f"{real}={copy}" for real, copy in copies.items()]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            BIND_BELOW,
            "sh",
            str(closed),
            *mounts,
            "--",
            f"python/{python}",
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["True 2", "True 3", "LoginError"], done.stderr


def test_a_fork_of_the_caller_starts_its_own_child(sshd: Sshd, collect: Path, target: Path, user: Account) -> None:
    create_files(collect)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=options_by_value(sshd))
    with peer:
        assert peer.checkCollectIndicator()
        (child,) = isolated_children()
        run_in_fork(lambda: peer.__exit__(None, None, None))

        def use_peer() -> None:
            with contextlib.ExitStack() as block:
                block.push(peer)
                peer.writeStageIndicator()

        run_in_fork(use_peer)
        assert isolated_children() == [child]
        assert peer.checkCollectIndicator(), "the parent's child still works"
    assert (collect / "cback.stage").exists()


def test_not_available_is_an_os_error_as_the_original_raises() -> None:
    assert issubclass(NotAvailable, OSError)
