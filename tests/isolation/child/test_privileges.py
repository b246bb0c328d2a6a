"""A child has none of root's privileges, as /proc shows while it is connected, and cannot regain them."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage import RemotePeer
from peerstage.errors import StageError
from peerstage.isolation.users import LocalUser
from peerstage.records import Ownership
from support.accounts import Account
from support.children import isolated_children, process_status
from support.local_user import options_by_value
from support.sshd import Sshd


@pytest.fixture
def connected(
    sshd: Sshd, collect: Path, user: Account, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RemotePeer, int]]:
    """A peer connected as a local user from a process with secrets of root, and the id of its child."""
    for name in ("SSH_AUTH_SOCK", "SECRET_OF_ROOT", "PYTHONPATH", "PYTHONSTARTUP", "LD_LIBRARY_PATH", "KRB5CCNAME"):
        monkeypatch.setenv(name, "/of/root/secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (collect / "cback.collect").touch()
    os.environ["HOME"] = "/root"
    secret = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(secret, True)
    os.chdir(collect)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=options_by_value(sshd))
    with peer:
        assert peer.checkCollectIndicator()
        (pid,) = isolated_children()
        yield peer, pid
    os.close(secret)
    os.chdir("/")


def test_its_ids_are_the_users_and_it_has_no_capabilities(connected: tuple[RemotePeer, int], user: Account) -> None:
    status = process_status(connected[1])
    assert status["Uid"] == [str(user.uid)] * 4
    assert status["Gid"] == [str(user.gid)] * 4
    assert status["Groups"] == [str(user.gid)]
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name][0], 16) == 0
    assert status["NoNewPrivs"] == ["1"]
    tasks = list(Path(f"/proc/{connected[1]}/task").iterdir())
    assert len(tasks) > 1, "paramiko's threads"
    for task in tasks:
        assert f"Uid:\t{user.uid}\t{user.uid}\t{user.uid}\t{user.uid}\n" in (task / "status").read_text()


def test_the_socket_to_the_peer_belongs_to_the_child_alone(
    connected: tuple[RemotePeer, int], sshd: Sshd, user: Account
) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {row[9]: int(row[7]) for row in rows if row[2].endswith(f":{sshd.port:04X}") and row[3] == "01"}
    links = {link for fd in descriptors(connected[1]).values() if (link := fd).startswith("socket:")}
    assert set(ours.values()) == {user.uid}
    assert {f"socket:[{inode}]" for inode in ours} <= links
    here = descriptors(os.getpid()).values()
    assert not any(f"socket:[{inode}]" in here for inode in ours)


def test_its_environment_holds_nothing_of_roots(connected: tuple[RemotePeer, int], user: Account) -> None:
    environ = dict(
        line.split("=", 1) for line in Path(f"/proc/{connected[1]}/environ").read_text().rstrip("\0").split("\0")
    )
    assert set(environ.pop("PEERSTAGE_CHILD")) <= set("0123456789abcdef")
    assert {name: value for name, value in environ.items() if not name.startswith("LC_") and name != "LANG"} == {
        "HOME": str(user.home),
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }


def test_it_shares_no_descriptor_directory_session_or_terminal_with_root(
    connected: tuple[RemotePeer, int], collect: Path
) -> None:
    _, pid = connected
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid == os.getpgid(pid)
    found = descriptors(pid)
    assert found[0] == "/dev/null"
    kinds = sorted(re.sub(r":?\[.*", "", link) for fd, link in found.items() if fd > 2)
    assert "/etc/shadow" not in found.values()
    assert set(kinds) <= {"pipe", "socket", "anon_inode"}
    assert len(kinds) < 10
    for fd in (0, 1, 2):
        assert found[fd] not in {descriptors(os.getpid())[own] for own in (1, 2)}
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_other_processes_of_the_user_cannot_inspect_it(connected: tuple[RemotePeer, int], user: Account) -> None:
    look = f"open('/proc/{connected[1]}/environ', 'rb').read()"
    done = as_user(user, [sys.executable, "-c", look])
    assert "PermissionError" in done


SCRIPT = """
import os, subprocess, sys
sys.path[:0] = {path!r}
from peerstage.errors import StageError
from peerstage.isolation.child.privileges import drop_privileges
from peerstage.isolation.users import LocalUser
from peerstage.records import Ownership
user = LocalUser({user.name!r}, {user.uid}, {user.gid}, "/", "/bin/sh")
{more}
"""
TRIES_TO_REGAIN_ROOT = """
os.setgroups([0, 4, 27])
drop_privileges(user, allow_set_id_programs=False)
attempts = [
    lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setreuid(0, 0), lambda: os.setresuid(-1, 0, -1),
    lambda: os.setgid(0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.initgroups("root", 0),
    lambda: open("/etc/shadow").read(), lambda: open("/proc/1/environ").read(), lambda: os.listdir("/root"),
    lambda: os.kill(os.getppid(), 0), lambda: os.chroot("/"), lambda: os.chown("/etc/passwd", 0, 0),
    lambda: subprocess.run(["/bin/cat", "/etc/shadow"], check=True, capture_output=True),
]
for number, attempt in enumerate(attempts):
    try:
        attempt()
    except (PermissionError, subprocess.CalledProcessError):
        continue
    print("attempt", number, "succeeds")
print(*os.getresuid(), *os.getresgid(), *os.getgroups())
"""
SEARCHES_KEYRING = """
import ctypes
from peerstage.isolation.child import privileges
libc, keyctl = ctypes.CDLL(None), privileges._SYS_KEYCTL[os.uname().machine]
libc.syscall(keyctl, 1, None)
libc.syscall(keyctl - 2, b"user", b"secret-of-root", b"payload", 7, -3)
find = lambda: libc.syscall(keyctl, 10, -3, b"user", b"secret-of-root", 0) > 0
print("root has it:", find())
drop_privileges(user, allow_set_id_programs=False)
print("the user has it:", find())
"""
FAILS = """
try:
    drop_privileges(user, allow_set_id_programs=False)
    print("it continues")
except StageError as exc:
    print(exc.reason, exc)
"""
#: Steps that fail, and the error.
FAILING_STEPS = {
    "setresuid does nothing": ("os.setresuid = lambda *ids: None", "Root privileges were not dropped"),
    "setresgid does nothing": ("os.setresgid = lambda *ids: None", "Root privileges were not dropped"),
    "capset is refused": ("privileges._libc = lambda: Refusing('capset')", "capset: Operation not permitted"),
    "prctl is refused": ("privileges._libc = lambda: Refusing('prctl')", "prctl(PR_SET_DUMPABLE): Operation"),
    "/proc is empty": ("import builtins; builtins.open = lambda *what: io.BytesIO()", "/proc shows no capabilities"),
}
REFUSING = """
import ctypes, errno, io
from peerstage.isolation.child import privileges
class Refusing:
    def __init__(self, name):
        self.name, self.libc = name, ctypes.CDLL(None, use_errno=True)
    def refuse(self, *arguments):
        ctypes.set_errno(errno.EPERM)
        return -1
    def __getattr__(self, name):
        return self.refuse if name == self.name else getattr(self.libc, name)
"""
#: Joins a session keyring of root, and uses up the key quota of an otherwise unused user id.
HAS_TOO_MANY_KEYS = """
import ctypes
from peerstage.isolation.child import privileges
user = LocalUser(user.name, 2_000_000_000 + os.getpid(), user.gid, "/", "/bin/sh")
libc, keyctl = ctypes.CDLL(None, use_errno=True), privileges._SYS_KEYCTL[os.uname().machine]
libc.syscall(keyctl, 1, None)
os.setresuid(user.uid, user.uid, 0)
number = 0
while libc.syscall(keyctl - 2, b"user", b"%d" % number, b"x", ctypes.c_size_t(1), -4) > 0:
    number += 1
os.setresuid(0, 0, 0)
"""
#: Prints whether the process is dumpable where fs.suid_dumpable is 1.
IS_DUMPABLE = """
import ctypes
libc, become = ctypes.CDLL(None), os.setresuid
os.setresuid = lambda *ids: (become(*ids), libc.prctl(4, 1, 0, 0, 0))
drop_privileges(user, allow_set_id_programs=False)
print(libc.prctl(3, 0, 0, 0, 0))
"""


def run_as_child(user: Account, more: str, *through: str) -> str:
    """Run *more* with the child's own function in another process, started by the command *through*."""
    script = SCRIPT.format(path=sys.path, user=user, more=more)
    done = subprocess.run([*through, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_root_cannot_be_regained(user: Account) -> None:
    assert run_as_child(user, TRIES_TO_REGAIN_ROOT) == " ".join([str(user.uid)] * 3 + [str(user.gid)] * 4)


def test_keys_in_the_session_keyring_of_root_are_not_found(user: Account) -> None:
    """This fails where a container engine forbids keyctl(2), which leaves nothing to test: run it elsewhere."""
    assert run_as_child(user, SEARCHES_KEYRING).splitlines() == ["root has it: True", "the user has it: False"]


@pytest.mark.parametrize(("failing_step", "message"), FAILING_STEPS.values(), ids=FAILING_STEPS.keys())
def test_a_child_that_cannot_drop_privileges_does_nothing(user: Account, failing_step: str, message: str) -> None:
    printed = run_as_child(user, f"{REFUSING}\n{failing_step}\n{FAILS}")
    assert printed.startswith("privileges-not-dropped ")
    assert message in printed


def test_a_child_that_cannot_verify_that_privileges_were_dropped_does_nothing(user: Account) -> None:
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    assert "Mount /proc." in run_as_child(user, FAILS, "unshare", "--mount", "sh", "-c", hide, "sh")


def test_a_child_that_cannot_leave_the_keyring_of_root_does_nothing(user: Account) -> None:
    assert "keyctl: Disk quota exceeded" in run_as_child(user, HAS_TOO_MANY_KEYS + FAILS)


def test_it_is_undumpable_whatever_suid_dumpable_says(user: Account) -> None:
    assert run_as_child(user, IS_DUMPABLE) == "0"


def test_supplementary_groups_are_those_of_the_user(user: Account, sshd: Sshd, collect: Path) -> None:
    group = f"g{os.getpid()}"
    subprocess.run(["groupadd", "--users", user.name, group], check=True)
    try:
        peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=options_by_value(sshd))
        with peer:
            peer.writeStageIndicator()
            (pid,) = isolated_children()
            gid = subprocess.run(["getent", "group", group], capture_output=True, text=True).stdout.split(":")[2]
            assert sorted(process_status(pid)["Groups"]) == sorted([str(user.gid), gid])
    finally:
        subprocess.run(["groupdel", group], check=True)


def test_a_foreign_command_runs_as_the_user_in_a_workspace_of_its_own(
    user: Account, target: Path, public_path: Path
) -> None:
    script, output = public_path / "rcp", public_path / "output"
    script.write_text(
        f"exec >{output}\nfor t; do :; done\n"
        'id -u; id -G; env | cut -d= -f1 | sort | tr "\\n" " "; echo\n'
        'ls -l /proc/$$/fd | sed "s/.*-> //" | tr "\\n" " "; echo; echo "$t"\n'
        "(ls .. && cat ../lock) 2>&1; (cat /etc/shadow) 2>&1\n"
        'echo a >"$t/a"; exit 7\n'
    )
    output.touch()
    user.chown_tree(output)
    target.chmod(0o700)
    peer = RemotePeer("db1", "/collect", "/tmp", "backup", f"/bin/sh {script} -B", user.name)
    with pytest.raises(StageError, match="status 7"):
        peer.stagePeer(str(target))
    uid, groups, names, fds, workspace, *refusals = output.read_text().splitlines()
    assert (uid, groups, workspace) == (str(user.uid), str(user.gid), ".")
    ours = {"HOME", "LOGNAME", "PATH", "PEERSTAGE_CHILD", "PWD", "SHELL", "USER"}
    assert set(names.split()) - {"LANG", "LC_ALL", "LC_CTYPE", "OLDPWD", "_"} == ours
    assert "/etc/shadow" not in fds
    assert all("Permission denied" in line or "cannot" in line for line in refusals)
    assert len(refusals) == 2


def test_the_name_of_the_user_of_this_process_starts_no_child(peer: RemotePeer, collect: Path) -> None:
    (collect / "cback.collect").touch()
    peer.localUser = pwd.getpwuid(os.geteuid()).pw_name
    with peer:
        assert peer.checkCollectIndicator()
        assert isolated_children() == []


def test_unspecified_ids_of_an_ownership_are_the_users() -> None:
    user = LocalUser("a", 7, 8, "/", "/bin/sh")
    assert user.complete_ownership(None) == (7, 8)
    assert user.complete_ownership(Ownership(-1, 5)) == (7, 5)


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
    return found


def as_user(user: Account, command: list[str]) -> str:
    """Run a command as *user*, and return its output."""
    done = subprocess.run(
        ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", *command],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr
