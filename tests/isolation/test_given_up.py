"""What a child has of root: nothing, as /proc shows it while it is connected; and what it can not get back."""

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
from support.accounts import Account
from support.children import children_apart, status_of
from support.local_user import by_value
from support.sshd import Sshd


@pytest.fixture
def connected(
    sshd: Sshd, collect: Path, user: Account, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RemotePeer, int]]:
    """A peer in a with block, connected as a local user from a process that has much of root's, and that child."""
    for name in ("SSH_AUTH_SOCK", "SECRET_OF_ROOT", "PYTHONPATH", "PYTHONSTARTUP", "LD_LIBRARY_PATH", "KRB5CCNAME"):
        monkeypatch.setenv(name, "/of/root/secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (collect / "cback.collect").touch()
    os.environ["HOME"] = "/root"
    secret = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(secret, True)
    os.chdir(collect)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=by_value(sshd))
    with peer:
        assert peer.checkCollectIndicator()
        (pid,) = children_apart()
        yield peer, pid
    os.close(secret)
    os.chdir("/")


def test_its_ids_groups_and_capabilities_are_the_users(connected: tuple[RemotePeer, int], user: Account) -> None:
    status = status_of(connected[1])
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


def test_the_socket_to_the_peer_is_the_users_and_this_process_has_none(
    connected: tuple[RemotePeer, int], sshd: Sshd, user: Account
) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {row[9]: int(row[7]) for row in rows if row[2].endswith(f":{sshd.port:04X}") and row[3] == "01"}
    links = {link for fd in descriptors(connected[1]).values() if (link := fd).startswith("socket:")}
    assert set(ours.values()) == {user.uid}
    assert {f"socket:[{inode}]" for inode in ours} <= links
    here = descriptors(os.getpid()).values()
    assert not any(f"socket:[{inode}]" in here for inode in ours)


def test_its_environment_is_built_from_nothing(connected: tuple[RemotePeer, int], user: Account) -> None:
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


def test_its_descriptors_directory_session_and_terminal_are_not_ours(
    connected: tuple[RemotePeer, int], collect: Path
) -> None:
    _, pid = connected
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid == os.getpgid(pid)
    found = descriptors(pid)
    assert found[0] == "/dev/null"
    kinds = sorted(re.sub(r":?\[.*", "", link) for fd, link in found.items() if fd > 2)
    assert "/etc/shadow" not in found.values()
    assert set(kinds) <= {"pipe", "socket", "anon_inode", "/memfd:peerstage (deleted)"}
    assert len(kinds) < 10
    for fd in (0, 1, 2):
        assert found[fd] not in {descriptors(os.getpid())[one] for one in (1, 2)}
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_others_of_that_user_can_not_look_into_it(connected: tuple[RemotePeer, int], user: Account) -> None:
    look = f"open('/proc/{connected[1]}/environ', 'rb').read()"
    done = as_user(user, [sys.executable, "-c", look])
    assert "PermissionError" in done


GIVES_UP = """
import os, subprocess, sys
sys.path[:0] = {path!r}
from peerstage.errors import StageError
from peerstage.isolation.privileges import give_up_root
from peerstage.isolation.users import LocalUser
user = LocalUser({user.name!r}, {user.uid}, {user.gid}, "/", "/bin/sh")
{more}
"""
TRIES_TO_GO_BACK = """
os.setgroups([0, 4, 27])
give_up_root(user, set_id_programs=False)
ways = [
    lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setreuid(0, 0), lambda: os.setresuid(-1, 0, -1),
    lambda: os.setgid(0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.initgroups("root", 0),
    lambda: open("/etc/shadow").read(), lambda: open("/proc/1/environ").read(), lambda: os.listdir("/root"),
    lambda: os.kill(os.getppid(), 0), lambda: os.chroot("/"), lambda: os.chown("/etc/passwd", 0, 0),
    lambda: subprocess.run(["/bin/cat", "/etc/shadow"], check=True, capture_output=True),
]
for number, way in enumerate(ways):
    try:
        way()
    except (PermissionError, subprocess.CalledProcessError):
        continue
    print("way", number, "is open")
print(*os.getresuid(), *os.getresgid(), *os.getgroups())
"""
LOOKS_FOR_KEYS = """
import ctypes
from peerstage.isolation import privileges
libc, keyctl = ctypes.CDLL(None), privileges._SYS_KEYCTL[os.uname().machine]
libc.syscall(keyctl, 1, None)
libc.syscall(keyctl - 2, b"user", b"secret-of-root", b"payload", 7, -3)
find = lambda: libc.syscall(keyctl, 10, -3, b"user", b"secret-of-root", 0) > 0
print("root has it:", find())
give_up_root(user, set_id_programs=False)
print("the user has it:", find())
"""
FAILS = """
try:
    give_up_root(user, set_id_programs=False)
    print("it goes on")
except OSError as exc:
    print(exc)
"""
#: What a process does that is not let do one of the steps.
BROKEN = {
    "setresuid does nothing": ("os.setresuid = lambda *ids: None", "Root was not given up"),
    "setresgid does nothing": ("os.setresgid = lambda *ids: None", "Root was not given up"),
    "capset is refused": ("privileges._libc = lambda: Refusing('capset')", "capset: Operation not permitted"),
    "prctl is refused": ("privileges._libc = lambda: Refusing('prctl')", "prctl(4): Operation not permitted"),
    "the kernel tells nothing": ("import builtins; builtins.open = lambda *what: io.BytesIO()", "no capabilities"),
}
REFUSING = """
import ctypes, errno, io
from peerstage.isolation import privileges
class Refusing:
    def __init__(self, name):
        self.name, self.libc = name, ctypes.CDLL(None, use_errno=True)
    def refuse(self, *arguments):
        ctypes.set_errno(errno.EPERM)
        return -1
    def __getattr__(self, name):
        return self.refuse if name == self.name else getattr(self.libc, name)
"""
#: Has a session keyring of root's, and fills the quota of keys of a user whom nobody else is.
HAS_TOO_MANY_KEYS = """
import ctypes
from peerstage.isolation import privileges
user = LocalUser(user.name, 2_000_000_000 + os.getpid(), user.gid, "/", "/bin/sh")
libc, keyctl = ctypes.CDLL(None, use_errno=True), privileges._SYS_KEYCTL[os.uname().machine]
libc.syscall(keyctl, 1, None)
os.setresuid(user.uid, user.uid, 0)
number = 0
while libc.syscall(keyctl - 2, b"user", b"%d" % number, b"x", ctypes.c_size_t(1), -4) > 0:
    number += 1
os.setresuid(0, 0, 0)
"""
#: Prints whether others of the user may look into it, as where fs.suid_dumpable is 1.
IS_DUMPABLE = """
import ctypes
libc, become = ctypes.CDLL(None), os.setresuid
os.setresuid = lambda *ids: (become(*ids), libc.prctl(4, 1, 0, 0, 0))
give_up_root(user, set_id_programs=False)
print(libc.prctl(3, 0, 0, 0, 0))
"""


def run_as_child(user: Account, more: str, *through: str) -> str:
    """Run the child's own steps and *more* in another process, by the command *through*."""
    script = GIVES_UP.format(path=sys.path, user=user, more=more)
    done = subprocess.run([*through, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_root_can_not_be_had_again(user: Account) -> None:
    assert run_as_child(user, TRIES_TO_GO_BACK) == " ".join([str(user.uid)] * 3 + [str(user.gid)] * 4)


def test_the_keys_in_roots_session_keyring_are_not_found_any_more(user: Account) -> None:
    """Where an engine forbids keyrings (keyctl(2) in a container) this shows nothing, and fails: run it elsewhere."""
    assert run_as_child(user, LOOKS_FOR_KEYS).splitlines() == ["root has it: True", "the user has it: False"]


@pytest.mark.parametrize(("breaks", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_child_that_could_not_give_up_root_does_nothing(user: Account, breaks: str, words: str) -> None:
    assert words in run_as_child(user, f"{REFUSING}\n{breaks}\n{FAILS}")


def test_a_child_that_can_not_see_that_root_was_given_up_does_nothing(user: Account) -> None:
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    assert "Mount it." in run_as_child(user, FAILS, "unshare", "--mount", "sh", "-c", hide, "sh")


def test_a_child_that_can_not_leave_roots_keyring_does_nothing(user: Account) -> None:
    assert "keyctl: Disk quota exceeded" in run_as_child(user, HAS_TOO_MANY_KEYS + FAILS)


def test_others_of_that_user_can_not_look_into_it_whatever_the_system_lets_them(user: Account) -> None:
    assert run_as_child(user, IS_DUMPABLE) == "0"


def test_supplementary_groups_are_those_of_the_user(user: Account, sshd: Sshd, collect: Path) -> None:
    group = f"g{os.getpid()}"
    subprocess.run(["groupadd", "--users", user.name, group], check=True)
    try:
        peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=by_value(sshd))
        with peer:
            peer.writeStageIndicator()
            (pid,) = children_apart()
            gid = subprocess.run(["getent", "group", group], capture_output=True, text=True).stdout.split(":")[2]
            assert sorted(status_of(pid)["Groups"]) == sorted([str(user.gid), gid])
    finally:
        subprocess.run(["groupdel", group], check=True)


def test_a_foreign_command_runs_as_that_user_in_a_directory_that_it_alone_is_given(
    user: Account, target: Path, public_path: Path
) -> None:
    shows, words = public_path / "rcp", public_path / "words"
    shows.write_text(
        f"exec >{words}\nfor t; do :; done\n"
        'id -u; id -G; env | cut -d= -f1 | sort | tr "\\n" " "; echo\n'
        'ls -l /proc/$$/fd | sed "s/.*-> //" | tr "\\n" " "; echo; echo "$t"\n'
        "(ls .. && cat ../lock) 2>&1; (cat /etc/shadow) 2>&1\n"
        'echo a >"$t/a"; exit 7\n'
    )
    words.touch()
    user.give(words)
    target.chmod(0o700)
    peer = RemotePeer("db1", "/collect", "/tmp", "backup", f"/bin/sh {shows} -B", user.name)
    with pytest.raises(StageError, match="status 7"):
        peer.stagePeer(str(target))
    uid, groups, names, fds, place, *refusals = words.read_text().splitlines()
    assert (uid, groups, place) == (str(user.uid), str(user.gid), ".")
    ours = {"HOME", "LOGNAME", "PATH", "PEERSTAGE_CHILD", "PWD", "SHELL", "USER"}
    assert set(names.split()) - {"LANG", "LC_ALL", "LC_CTYPE", "OLDPWD", "_"} == ours
    assert "/etc/shadow" not in fds
    assert all("Permission denied" in line or "cannot" in line for line in refusals)
    assert len(refusals) == 2


def test_the_users_own_name_is_no_other_user(peer: RemotePeer, collect: Path) -> None:
    (collect / "cback.collect").touch()
    peer.localUser = pwd.getpwuid(os.geteuid()).pw_name
    with peer:
        assert peer.checkCollectIndicator()
        assert children_apart() == []


def test_ownership_that_is_left_open_is_the_users() -> None:
    one = LocalUser("a", 7, 8, "/", "/bin/sh")
    assert one.ownership(None) == (7, 8)


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
    return found


def as_user(user: Account, command: list[str]) -> str:
    """Run a command as *user*, and return all that it says."""
    done = subprocess.run(
        ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", *command],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr
