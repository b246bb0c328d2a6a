"""The embedded server: real clients, one user, one directory, and no process left behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import paramiko
import pytest

import peerstage
from peerstage import RemotePeer
from peerstage.errors import NotAvailable, StageError
from peerstage.testing import hash_files, make_sample, ssh_server
from peerstage.testing import server as server_module
from peerstage.testing.server import EmbeddedServer
from support.programs import require_program
from support.waiting import exits_within

pytestmark = pytest.mark.usefixtures("fresh_interpreter")

NOT_UTF8 = b"\xff\xfe not utf-8"
SOURCES = Path(peerstage.__file__).parents[1]


@contextlib.contextmanager
def logged_in(server: EmbeddedServer, key: paramiko.PKey | None = None) -> Iterator[paramiko.SFTPClient]:
    """Connect with paramiko's client."""
    transport = paramiko.Transport((server.host, server.port))
    try:
        file = io.StringIO(server.private_key.decode())
        transport.connect(username=server.username, pkey=key or paramiko.Ed25519Key.from_private_key(file))
        sftp = transport.open_sftp_client()
        assert sftp is not None
        yield sftp
    finally:
        transport.close()


def scp(server: EmbeddedServer, directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run OpenSSH's scp; ``PEER:`` in an argument is replaced by the server."""
    key, known = directory / "key", directory / "known"
    key.touch(mode=0o600)
    key.write_bytes(server.private_key)
    known.write_bytes(server.known_hosts)
    peer = f"{server.username}@{server.host}:"
    return subprocess.run(
        [require_program("scp"), "-q", "-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={known}", "-P",
         str(server.port), *(argument.replace("PEER:", peer) for argument in arguments)],
        capture_output=True,
        check=False,
    )  # fmt: skip


@contextlib.contextmanager
def parent_program(collect: Path, block: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program that serves *collect* and executes *block* in the with block."""
    code = "\n".join(
        [
            "import os, socket, sys, time",
            "from peerstage.testing import ssh_server",
            f"with ssh_server({str(collect)!r}) as server:",
            "    print(server.pid, flush=True)",
            *(f"    {line}" for line in block.splitlines()),
        ]
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        start_new_session=True,
    ) as parent:
        try:
            yield parent
        finally:
            parent.kill()


def line_of(parent: subprocess.Popen[str]) -> str:
    assert parent.stdout is not None
    return parent.stdout.readline().strip()


# What is served


def test_a_sample_of_real_files_is_staged_from_it_byte_for_byte(
    collect: Path, target: Path, leaves_nothing: None
) -> None:
    made = make_sample(collect, small=100, large=1, large_bytes=5_000_000)
    with ssh_server(collect) as server, RemotePeer(server.host, "/", None, server.username, ssh=server.options) as peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == len(made)
        peer.writeStageIndicator()
    assert hash_files(target) == made
    assert (collect / "cback.stage").exists()


def test_paramikos_client_lists_reads_and_writes(collect: Path) -> None:
    (collect / "a").write_bytes(b"content")
    with ssh_server(collect) as server, logged_in(server) as sftp:
        assert sftp.listdir("/") == ["a"]
        with sftp.open("/a") as file:
            assert file.read() == b"content"
        with sftp.open("/b", "w") as file:
            file.write(b"written")
    assert (collect / "b").read_bytes() == b"written"


def test_names_that_are_not_utf8_are_listed_and_read(collect: Path) -> None:
    with open(os.path.join(os.fsencode(collect), NOT_UTF8), "wb") as made:
        made.write(b"content")
    with ssh_server(collect) as server:
        with logged_in(server) as sftp, sftp.open(b"/" + NOT_UTF8) as file:
            assert file.read() == b"content"

        async def listed() -> set[bytes]:
            async with connected(server) as connection, connection.start_sftp_client(path_encoding=None) as client:
                return {bytes(name) for name in await client.listdir(b"/")}

        assert NOT_UTF8 in asyncio.run(listed())


def test_asyncssh_reads_through_a_rekey(collect: Path) -> None:
    content = os.urandom(3_000_000)
    (collect / "large").write_bytes(content)
    with ssh_server(collect) as server:

        async def read() -> bytes:
            async with connected(server, rekey_bytes=500_000) as connection, connection.start_sftp_client() as client:
                assert client.version == 3
                assert client.limits.max_read_len >= 256 * 1024
                async with client.open("/large", "rb") as file:
                    return bytes(await file.read())

        assert asyncio.run(read()) == content


@contextlib.asynccontextmanager
async def connected(server: EmbeddedServer, rekey_bytes: int = 1 << 30) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with asyncssh.connect(
        server.host,
        server.port,
        username=server.username,
        client_keys=[asyncssh.import_private_key(server.private_key)],
        known_hosts=asyncssh.import_known_hosts(server.known_hosts.decode()),
        config=None,
        agent_path=None,
        rekey_bytes=rekey_bytes,
    ) as connection:
        yield connection


@pytest.mark.parametrize("protocol", ["-s", "-O"], ids=["over sftp", "over scp"])
def test_openssh_copies_in_both_directions(collect: Path, tmp_path: Path, protocol: str) -> None:
    (collect / "a b").write_bytes(b"content")
    got, quoted = tmp_path / "got", "a\\ b" if protocol == "-O" else "a b"
    with ssh_server(str(collect), username="somebody") as server:
        for source, destination in ((f"PEER:/{quoted}", str(got)), (str(got), "PEER:/back")):
            done = scp(server, tmp_path, protocol, source, destination)
            assert (done.returncode, done.stderr) == (0, b"")
    assert got.read_bytes() == (collect / "back").read_bytes() == b"content"


def test_a_fifo_is_refused_without_blocking(collect: Path) -> None:
    os.mkfifo(collect / "fifo")
    (collect / "a").write_bytes(b"content")
    with ssh_server(collect) as server, logged_in(server) as sftp:
        with pytest.raises(OSError, match="Not a regular file"):
            sftp.open("/fifo")
        assert sftp.stat("/a").st_size == 7


# Who is let in, and to what


def test_other_keys_and_users_are_refused(collect: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh").decode()
    with ssh_server(collect) as server:
        with (
            pytest.raises(paramiko.AuthenticationException),
            logged_in(server, paramiko.Ed25519Key.from_private_key(io.StringIO(other))),
        ):
            raise AssertionError
        peer = RemotePeer(server.host, "/", None, "root", ssh=server.options)
        with pytest.raises(StageError, match="refused"):
            peer.writeStageIndicator()


def test_a_key_is_the_only_way_to_log_in(collect: Path) -> None:
    with ssh_server(collect) as server:
        transport = paramiko.Transport((server.host, server.port))
        transport.start_client(timeout=10)
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            transport.auth_none(server.username)
        transport.close()
    assert caught.value.allowed_types == ["publickey"]


def test_each_server_has_new_keys(collect: Path) -> None:
    with ssh_server(collect) as one, ssh_server(collect) as other:
        assert one.private_key != other.private_key
        assert one.known_hosts.split()[2] != other.known_hosts.split()[2]
        assert one.port != other.port


def test_nothing_outside_the_directory_can_be_reached(collect: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with ssh_server(collect) as server:
        with logged_in(server) as sftp:
            assert sftp.normalize("/../..") == "/"
            for path in ("/../secret", "../secret", str(secret), "/../../../../etc/passwd", "/./.././../etc/passwd"):
                for request in (sftp.stat, sftp.lstat, sftp.open, sftp.listdir):
                    with pytest.raises(FileNotFoundError):
                        request(path)
            sftp.symlink(str(secret), "/link")
            with pytest.raises(FileNotFoundError):
                sftp.stat("/link")
        assert scp(server, tmp_path, "-O", "PEER:/../secret", str(tmp_path / "got")).returncode != 0
    assert not (tmp_path / "got").exists()


def test_a_link_in_the_directory_is_followed(collect: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"content")
    (collect / "link").symlink_to(tmp_path / "elsewhere")
    with ssh_server(collect) as server, logged_in(server) as sftp:
        assert sftp.stat("/link").st_size == 7


def test_no_command_but_scp_is_run(collect: Path, tmp_path: Path) -> None:
    with ssh_server(collect) as server, logged_in(server) as sftp:
        transport = sftp.get_channel().get_transport()  # type: ignore[union-attr]
        channel = transport.open_session()
        with pytest.raises(paramiko.SSHException):
            channel.exec_command("id")


def test_its_repr_shows_no_secrets(collect: Path) -> None:
    with ssh_server(collect) as server:
        shown = repr(server)
        assert "PRIVATE" not in shown
        assert not any(line in shown for line in server.private_key.decode().splitlines())


# When it ends


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_the_process_exits_with_the_block_even_after_an_exception(
    collect: Path, leaves_nothing: None, error: type[BaseException] | None
) -> None:
    with contextlib.suppress(KeyError, KeyboardInterrupt), ssh_server(collect) as server:
        assert not exits_within(server.pid, 0)
        if error is not None:
            raise error
    assert exits_within(server.pid, 0)


def test_it_leaves_no_temporary_file(collect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with ssh_server(collect) as server, logged_in(server) as sftp:
        assert sftp.listdir("/") == []
        assert os.listdir(temporary) == []
    assert os.listdir(temporary) == []


def test_the_process_exits_with_its_parent_even_after_sigkill(collect: Path) -> None:
    with parent_program(collect, "time.sleep(60)") as parent:
        pid = int(line_of(parent))
        parent.send_signal(signal.SIGKILL)
        assert exits_within(pid)


def test_a_process_that_the_parent_forked_does_not_keep_it_alive(collect: Path) -> None:
    with parent_program(collect, "if child := os.fork():\n    print(child, flush=True)\ntime.sleep(60)") as parent:
        pid, forked = int(line_of(parent)), int(line_of(parent))
        try:
            parent.send_signal(signal.SIGKILL)
            assert exits_within(pid)
            assert not exits_within(forked, 0)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_forked_process_that_leaves_the_block_does_not_end_it(collect: Path) -> None:
    block = (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    raise SystemExit\n"
        "os.waitpid(child, 0)\n"
        "socket.create_connection((server.host, server.port)).close()\n"
        "print('still there', flush=True)"
    )
    with parent_program(collect, block) as parent:
        pid = int(line_of(parent))
        assert line_of(parent) == "still there"
        assert parent.wait(10) == 0
        assert exits_within(pid, 0)


def test_ctrl_c_does_not_reach_it_before_its_parent_is_done(collect: Path) -> None:
    block = (
        "try:\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    socket.create_connection((server.host, server.port)).close()\n"
        "    print('still there', flush=True)"
    )
    with parent_program(collect, block) as parent:
        pid = int(line_of(parent))
        assert line_of(parent) == "waiting"
        assert os.getpgid(pid) != parent.pid
        os.killpg(parent.pid, signal.SIGINT)
        assert line_of(parent) == "still there"
        assert parent.wait(10) == 0
        assert exits_within(pid, 0)


def test_a_stopped_server_is_killed(collect: Path, leaves_nothing: None) -> None:
    with ssh_server(collect, shutdown_timeout=0.2) as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert exits_within(server.pid, 0)


# When it does not start


@pytest.mark.parametrize(
    "blocker",
    [
        "sys.modules['asyncssh'] = None",
        "sys.meta_path.insert(0, type('Blocks', (), {'find_spec': staticmethod(refuse)}))",
    ],
    ids=["not there", "refused"],
)
def test_a_missing_asyncssh_is_reported_with_what_to_install(collect: Path, blocker: str) -> None:
    code = f"""
import sys
from peerstage.errors import NotAvailable
from peerstage.testing import ssh_server

def refuse(name, *others):
    if name.partition(".")[0] == "asyncssh":
        raise ImportError(name)

{blocker}
try:
    with ssh_server({str(collect)!r}):
        pass
except NotAvailable as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert "pip install 'peerstage[testing]'" in done.stdout
    assert done.stderr == ""


def test_an_asyncssh_that_cannot_be_imported_counts_as_missing(
    collect: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = f"import sys; sys.modules['asyncssh'] = None; {server_module._PROGRAM}"
    monkeypatch.setattr(server_module, "_PROGRAM", broken)
    with pytest.raises(NotAvailable, match=r"pip install 'peerstage\[testing\]' \(.*asyncssh"), ssh_server(collect):
        raise AssertionError
    assert capfd.readouterr().err == ""


def test_importing_it_loads_neither_asyncssh_nor_paramiko() -> None:
    code = "import peerstage.testing.server, sys; sys.exit(bool({'asyncssh', 'paramiko'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SOURCES)})


def test_a_program_that_is_not_a_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with pytest.raises(StageError, match="did not start"), ssh_server(tmp_path):
        raise AssertionError


def test_a_missing_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(StageError, match="did not start"), ssh_server(tmp_path):
        raise AssertionError


def test_a_silent_server_is_given_up_at_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves_nothing: None
) -> None:
    monkeypatch.setattr(server_module, "_PROGRAM", "import time; time.sleep(60)")
    late = pytest.raises(StageError, match=r"within 0\.3 s.*PEERSTAGE_SERVER_DEBUG")
    with late, ssh_server(tmp_path, startup_timeout=0.3):
        raise AssertionError


def test_the_error_tells_why_it_did_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module, "_HOST", "192.0.2.1")
    with pytest.raises(StageError, match=r"OSError: .*192\.0\.2\.1"), ssh_server(tmp_path):
        raise AssertionError
    assert capfd.readouterr().err == ""


def test_a_missing_directory_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="existing directory"), ssh_server(tmp_path / "gone"):
        raise AssertionError


# What it is made of


def test_the_server_uses_the_package_of_its_parent(collect: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SOURCES / "peerstage", copy / "peerstage", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "peerstage" / "testing" / "_serve.py").write_text(
        "import json\ndef main():\n    print(json.dumps({'error': __file__}))\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(copy)!r})
from peerstage.errors import StageError
from peerstage.testing import ssh_server
try:
    with ssh_server({str(collect)!r}):
        pass
except StageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert f"did not start: {copy}" in done.stdout


def test_modules_beside_the_tests_of_a_user_are_not_imported(
    collect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "tests"
    beside.mkdir()
    for name in ("selectors.py", "logging.py", "asyncio.py"):
        (beside / name).write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(beside))
    monkeypatch.chdir(beside)
    with ssh_server(collect) as server:
        socket.create_connection((server.host, server.port)).close()


def test_it_logs_only_on_request(
    collect: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for wanted in ("", "1"):
        monkeypatch.setenv("PEERSTAGE_SERVER_DEBUG", wanted)
        with ssh_server(collect) as server, logged_in(server) as sftp:
            assert sftp.listdir("/") == []
        assert bool(capfd.readouterr().err) == bool(wanted)


# The sample


def test_the_same_arguments_make_the_same_sample(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert make_sample(first, small=20, large=0) == make_sample(second, small=20, large=0) == hash_files(first)
    assert make_sample(second, small=20, large=0, seed=2) != hash_files(first)


def test_the_sample_has_unusual_names_and_sizes(collect: Path) -> None:
    names = set(make_sample(collect, small=50, large=1, large_bytes=3_000_000))
    assert {b"cback.collect", b"empty", NOT_UTF8, b"-leading-dash", b"x" * 255, b"new\nline"} <= names
    assert any("🗄".encode() in name for name in names)
    sizes = {os.path.getsize(os.path.join(os.fsencode(collect), name)) for name in names}
    edges = {size + near for size in (32 * 1024, 255 * 1024, 256 * 1024) for near in (-1, 0, 1)}
    assert {0, 3_000_000} | edges <= sizes


def test_a_sample_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_sample(tmp_path / "gone", small=1, large=0)


def test_only_regular_files_are_hashed_and_no_dotfiles(collect: Path) -> None:
    (collect / "sub").mkdir()
    os.mkfifo(collect / "fifo")
    for name in (".hidden", "seen"):
        (collect / name).touch()
    assert list(hash_files(collect)) == [b"seen"]
